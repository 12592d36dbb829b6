import json

from steerlift.report.tables import print_training


def evaluation(first, *further):
    keys = {"pass_at_5": first, **{f"pass_at_{k}": score for k, score in further}}
    intervals = {"ci95": [first - 1, first + 1], **{f"pass_at_{k}_ci95": [0, 100] for k, _ in further}}
    return {**keys, "lenient_pass_at_5": first + 2, "format_rate": 90.0, "mean_length": 12.0, **intervals}


def printed_cells(run, capsys) -> list[list[str]]:
    print_training(run, run / "checkpoint_step_1")
    rows = [line.replace("┃", "│").split("│") for line in capsys.readouterr().out.splitlines() if line[:1] in "┃│"]
    return [[cell.strip() for cell in row[1:-1]] for row in rows]


def test_a_training_run_has_a_column_for_every_k(tmp_path, capsys):
    several = {"0": evaluation(50.0, (1, 20.0), (10, 61.25)), "50": evaluation(70.0, (1, 40.0), (10, 80.0))}
    (tmp_path / "eval_summary.json").write_text(json.dumps(several))
    assert printed_cells(tmp_path, capsys) == [
        ["step", "pass@5 %", "95 % interval", "pass@1 %", "pass@10 %", "lenient %", "format %", "length"],
        ["0", "50.0", "49.0 to 51.0", "20.0", "61.2", "52.0", "90.0", "12.0"],
        ["50", "70.0", "69.0 to 71.0", "40.0", "80.0", "72.0", "90.0", "12.0"],
    ]


def test_a_training_run_of_one_k(tmp_path, capsys):
    (tmp_path / "eval_summary.json").write_text(json.dumps({"0": evaluation(50.0)}))
    assert printed_cells(tmp_path, capsys) == [
        ["step", "pass@5 %", "95 % interval", "lenient %", "format %", "length"],
        ["0", "50.0", "49.0 to 51.0", "52.0", "90.0", "12.0"],
    ]
