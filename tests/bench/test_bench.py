import os
import re
from dataclasses import replace

import pytest
import torch

from bench import extraction, sampling, scaling, sweep
from bench.__main__ import DOCUMENT, _shown, main
from bench.grpo_trl import TRL
from bench.measure import (
    DifferentResultsError,
    Times,
    busy_cores,
    interleaved,
    require_close,
    require_same_tokens,
)
from bench.table import HEADINGS, Aim, Section, document, memory_row, rate_row, time_row
from steerlift.extraction.activations import mean_activations
from steerlift.problems.embedded import embedded_problems
from steerlift.problems.prompt import encode_prompt
from steerlift.steering.models import load_model, load_tokenizer

pytestmark = pytest.mark.e2e


def table_of(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_a_quick_run_writes_every_row_of_both_tables(setting, tmp_path, capsys):
    kept = DOCUMENT.read_bytes() if DOCUMENT.exists() else None
    main(["--quick", "--seed", "3", "--smollm2", str(setting.folder), "--output", str(tmp_path / "performance.md")])
    text = (tmp_path / "performance.md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    assert (DOCUMENT.read_bytes() if DOCUMENT.exists() else None) == kept  # a trial is no result

    lines = table_of(text)
    start_of_own = lines.index(list(scaling.HEADINGS))
    headings, _, *rows = lines[:start_of_own]
    _, _, *own = lines[start_of_own:]
    assert headings == list(HEADINGS)
    assert [row[0] for row in rows] == [
        "sampling, 8 x 4 completions",
        "a layer's attention of one new token, 8 rows of 650",
        "a layer's attention of one new token, 8 rows of 650, 430 of them the same",
        "GRPO, embedded model: generation",
        "GRPO, embedded model: loss and backward",
        "GRPO, embedded model: whole step",
        "GRPO, embedded model: loss and backward, half of the groups without signal",
        "GRPO, SmolLM2-135M-Instruct: generation",
        "GRPO, SmolLM2-135M-Instruct: loss and backward",
        "GRPO, SmolLM2-135M-Instruct: whole step",
        "learning vectors, embedded model: loss, backward and update",
        "extraction, 10 problems: time",
        "extraction, 10 problems: time",
        "extraction, 30 problems: time",
        "extraction, 30 problems: time",
        "sweep, 2 weights and base, 3 x 2 completions",
    ]
    for _, ours, alternative, ratio, cpu_ratio, turns, aim in rows:
        assert re.fullmatch(r"[\d,.]+ (s|tokens/s)", ours)
        assert re.fullmatch(r".+: [\d,.]+ (s|tokens/s)", alternative)
        assert re.fullmatch(r"\*\*[\d,.]+x\*\*( of its time)?", ratio)
        assert re.fullmatch(r"[\d,.]+x", cpu_ratio)
        assert turns == "1"
        assert aim == "-"  # only the full sizes are judged
    assert {row[2].partition(":")[0] for row in rows} >= {TRL, extraction.BARE, extraction.KEPT, sweep.ALTERNATIVE}
    unwrapped = " ".join(text.split())
    assert "the same tokens for 8 of 8 prompts" in unwrapped
    assert "the same tokens for 9 of 9 pairs" in unwrapped
    assert "SmolLM2-135M-Instruct: 4 of 4 completions" in unwrapped
    assert "on two processes 8 of 8 completions are those of one process" in unwrapped
    command = "- command: `python -m bench --quick --seed 3 --smollm2 FOLDER --output "
    for line in ("- seed: 3", f"- versions: torch {torch.__version__}", command):
        assert f"\n{line}" in text

    assert [(name, processes, problems) for name, processes, problems, *_ in own] == [
        ("one process", "1", "2"),
        ("strong scaling", "2", "2"),
        ("weak scaling", "2", "4"),
    ]
    for _, _, _, *seconds, speed_up, efficiency, steps in own:
        assert all(re.fullmatch(r"[\d.]+", cell) for cell in seconds)
        assert re.fullmatch(r"\*\*[\d.]+x\*\*|-", speed_up)
        assert re.fullmatch(r"[\d.]+ %|-", efficiency)
        assert steps == "1"


def test_an_unknown_benchmark_is_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["sampling", "speed"])
    assert stopped.value.code == 2
    assert "got benchmark 'speed', expected sampling, grpo, learning, extraction, sweep, scaling" in capsys.readouterr().err


def test_a_folder_without_a_model_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["grpo", "--quick", "--smollm2", str(tmp_path)])
    assert stopped.value.code == 2
    assert f"--smollm2 {tmp_path} holds no model; python recipes/smollm2.py {tmp_path} writes it" in capsys.readouterr().err


def test_the_document_names_no_folder_of_this_machine():
    assert _shown(["grpo", "--smollm2", "a", "--quick"]) == ["grpo", "--smollm2", "FOLDER", "--quick"]
    assert _shown(["grpo", "--smollm2=a/b"]) == ["grpo", "--smollm2=FOLDER"]


def test_keeping_every_activation_gives_the_same_means(setting):
    model = load_model(str(setting.folder), torch.device("cpu"), torch.float32)
    sequences = extraction.worked_sequences(setting.folder, extraction.Sizes(problems=7, repetitions=1))
    ours = mean_activations(model, sequences, "completion").state_LH
    torch.testing.assert_close(extraction.kept_means(model, sequences).double(), ours, rtol=1e-5, atol=1e-6)


def test_greedy_tokens_equal_those_of_generate_and_another_models_do_not(setting):
    model = load_model(str(setting.folder), torch.device("cpu"), torch.float32)
    tokenizer = load_tokenizer(str(setting.folder))
    prompts = [tuple(encode_prompt(tokenizer, problem.problem)) for problem in embedded_problems("test", 4, 0)]
    generate = sampling.Generate(model, tokenizer, prompts, 6)
    assert sampling.check_greedy(model, tokenizer, prompts, generate) == "4 of 4"
    other = load_model(str(setting.folder), torch.device("cpu"), torch.float32)
    with torch.no_grad():
        other.get_output_embeddings().weight.neg_()
    with pytest.raises(DifferentResultsError, match="greedy tokens: the same in"):
        sampling.check_greedy(other, tokenizer, prompts, generate)


def test_both_sweeps_steer_by_every_weight(setting):
    swept = sweep.Sweep(setting, sweep.Sizes(problems=2, completions=1, weights=(8.0,), length=6))
    ours, original = swept.ours(0.0, completions=1), swept.original(0.0, completions=1)
    assert ours == original
    assert set(ours) == {0.0, 8.0}
    assert ours[0.0] != ours[8.0]


def test_ways_take_turns_after_a_warm_up():
    calls = []

    def way(name, work):
        def once():
            calls.append(name)
            return work

        return once

    times = interleaved({"a": way("a", 2.0), "b": way("b", 3.0)}, 2)
    assert calls == ["a", "b"] * 3
    assert times["a"].work == (2.0, 2.0)
    assert times["b"].per_second() == tuple(3.0 / seconds for seconds in times["b"].wall)
    interleaved({"a": way("a", 1.0)}, 1, warm=True)
    assert calls == [*["a", "b"] * 3, "a"]


def test_results_that_differ_are_no_benchmark():
    ones = torch.ones(3)
    assert require_close("means", ones, ones * 2, 0.6) == 0.5
    for ours in (ones * 2, torch.tensor([1.0, float("nan"), 1.0]), torch.ones(2)):
        with pytest.raises(DifferentResultsError, match="means: ours"):
            require_close("means", ours, ones, 1e-5)
    assert require_same_tokens("greedy", [(1, 2), (3,)], [[1, 2], [4]], 0.5) == "1 of 2"
    with pytest.raises(DifferentResultsError, match=r"greedy: the same in 1 of 2 rows, expected 99%; row 1 is \[3\], the"):
        require_same_tokens("greedy", [(1, 2), (3,)], [[1, 2], [4]], 0.99)


def test_rows_show_median_spread_and_ratios_turn_by_turn():
    ours = Times(wall=(1.0, 2.0, 4.0), cpu=(1.0, 1.0, 1.0), work=(300.0, 300.0, 300.0))
    theirs = Times(wall=(3.0, 4.0, 20.0), cpu=(2.0, 2.5, 3.0), work=(300.0, 300.0, 300.0))
    assert time_row("a step", ours, "trl", theirs, Aim(3)).cells() == [
        "a step",
        "2.00 (1.00 – 4.00) s",
        "trl: 4.00 (3.00 – 20.0) s",
        "**3.00x (2.00 – 5.00)**",
        "2.50x (2.00 – 3.00)",
        "3",
        "at least 3: met",
    ]
    assert rate_row("tokens", "tokens/s", ours, "generate", theirs, Aim(3.1)).cells() == [
        "tokens",
        "150 (75.0 – 300) tokens/s",
        "generate: 75.0 (15.0 – 100) tokens/s",
        "**3.00x (2.00 – 5.00)**",
        "2.50x (2.00 – 3.00)",
        "3",
        "at least 3.1: MISSED",
    ]
    cost = time_row("means", theirs, "bare", ours, Aim(1.15, "at most"), is_cost=True).cells()
    assert cost[3:] == ["**3.00x (2.00 – 5.00)** of its time", "2.50x (2.00 – 3.00)", "3", "at most 1.15: MISSED"]
    memory = memory_row("peak", 1024.0, "all", 2560.0, Aim(2)).cells()
    assert memory == ["peak", "1,024 MiB", "all: 2,560 MiB", "**2.50x**", "-", "1", "at least 2: met"]


def test_only_full_sizes_are_judged(setting):
    assert replace(setting, full=True).aim(1.15, "at most") == Aim(1.15, "at most")
    assert setting.aim(1.15, "at most") is None


def test_the_document_says_what_where_and_when():
    row = memory_row("peak", 0.5, "all", 2.0)
    own = Section("Scaling", ["Twice."], "they agree too.", table=[("run", "speed-up"), ("two", "1.9x")])
    sections = [Section("Extraction", ["What. " * 40], "they agree.", [row]), own]
    text = document(sections, 5, "python -m bench", {"extraction": 0.04, "scaling": 0.2})
    assert max(map(len, text.partition("## Machine")[0].splitlines())) <= 120
    assert table_of(text)[2] == ["peak", "0.500 MiB", "all: 2.00 MiB", "**4.00x**", "-", "1", "-"]
    assert "## Extraction\n\nWhat. What." in text
    assert "Same results: they agree." in text
    assert "## Scaling\n\n| run | speed-up |\n| --- | --- |\n| two | 1.9x |\n\nTwice.\n\nSame results: they agree too." in text
    assert re.search(r"- machine: .+, \d+ cores, torch threads of a process: \d+ \(.+\)\n", text)
    looks = "- cores busy with other work in the second before each section: extraction 0.04, scaling 0.20; the machine was "
    assert looks + "quiet\n" in text
    assert re.search(r"- date: \d{4}-\d\d-\d\dT", text)
    assert TRL in text


def test_numbers_of_a_busy_machine_are_marked():
    text = document([], 5, "python -m bench", {"grpo": 0.0, "scaling": 0.21})
    assert "grpo 0.00, scaling 0.21; the machine was NOT quiet (more than 0.2): measure again\n" in text
    assert not table_of(text)


def test_busy_cores_are_counted():
    assert 0 <= busy_cores() <= os.cpu_count()
