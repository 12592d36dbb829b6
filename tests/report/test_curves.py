"""The training curves: what is read of a run, finished or not, what is drawn where, and one line for what cannot be used."""

import json
import random
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from small_pipeline import problem_file, saved, untrained

from steerlift.commands.main import main
from steerlift.records.errors import InputError, MissingInputError
from steerlift.report.config import PlotConfig
from steerlift.report.curves import PANELS, draw_curves, running_mean, running_window
from steerlift.report.plots import plot
from steerlift.report.themes import CHRISTMAS, PLAIN
from steerlift.report.training_run import METRICS, Evaluation, Score, load_training_run
from steerlift.training.config import TrainConfig
from steerlift.training.train import train

RESULTS = Path(__file__).parent / "original_headline.json"
WITHOUT_KL = {"kl": None}


def step_line(step: int, **changes) -> dict:
    """A line of metrics.jsonl with every metric that is drawn, and some that are not."""
    rng = random.Random(step)
    shares = ("accuracy", "lenient_accuracy", "format_rate", "truncated_rate", "no_signal_rate", "clip_rate")
    seconds = {"sampling_seconds": 8 + rng.random(), "grading_seconds": 0.5, "update_seconds": 5.0}
    line = {
        "step": step,
        "loss": rng.gauss(0, 0.01),
        "lr": 5e-6,
        "reward": rng.random(),
        **{name: rng.random() for name in shares},
        "mean_length": 100 + 50 * rng.random(),
        "entropy": rng.random(),
        "kl": 0.01 * rng.random(),
        "grad_norm": 0.1 + rng.random(),
        "tokens_per_second": 3000.0,
        "peak_memory_gib": 41.2,
        **seconds,
    }
    return {**line, **changes}


def short_line(step: int) -> dict:
    """One of two panels only: enough where the whole file is drawn."""
    return {
        name: value for name, value in step_line(step).items() if name in ("step", "reward", "mean_length", "truncated_rate")
    }


def evaluation(score: float, *further: int) -> dict:
    """A summary of eval_summary.json: pass@1 with its interval, then pass@k for each further k."""
    summary = {"pass_at_1": score, "num_eval_problems": 200, "ci95": [score - 5, score + 5], "ci95_method": "BCa"}
    for k in further:
        summary |= {f"pass_at_{k}": score + 0.4 * k, f"pass_at_{k}_ci95": [score + 0.4 * k - 2, score + 0.4 * k + 2]}
    return {**summary, "lenient_pass_at_1": score + 1, "lenient_ci95": [0.0, 1.0], "format_rate": 90.0}


@pytest.fixture
def written(tmp_path):
    """Writes a run directory of these lines and evaluations, and returns it."""

    def write(lines, evaluations=None, name="final_run") -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        if evaluations is not None:
            (folder / "eval_summary.json").write_text(json.dumps(evaluations, indent=2))
        return folder

    return write


@pytest.fixture
def run_of(written):
    """A loaded run of so many steps, evaluated at its start, middle and end with these k."""

    def make(steps: int, *further: int, **changes):
        evaluations = {str(step): evaluation(30 + 20 * step / steps, *further) for step in {0: 0, steps // 2: 0, steps: 0}}
        return load_training_run(written([step_line(step, **changes) for step in range(1, steps + 1)], evaluations))

    return make


def panel(figure: Figure, label: str):
    return next(axes for axes in figure.axes if axes.get_label() == label)


def panels(figure: Figure) -> list[str]:
    return [axes.get_label() for axes in figure.axes if axes.get_label() not in ("tree", "gift")]


def line_named(axes, name: str):
    return next(line for line in axes.lines if line.get_label().startswith(name))


def legend_texts(legend) -> list[str]:
    return [text.get_text() for text in legend.get_texts()]


# --- what is read ---


def test_a_run_is_read_in_the_order_of_its_steps(written):
    lines = [step_line(2, reward=0.5), step_line(1, reward=0.25, entropy=None), step_line(3, reward=1)]
    run = load_training_run(written(lines, {"10": evaluation(40.0), "2": evaluation(35.0, 4)}))
    assert (run.name, run.steps) == ("final_run", [1, 2, 3])
    assert run.metrics["reward"] == [0.25, 0.5, 1.0]
    assert run.metrics["entropy"][0] is None
    assert set(run.metrics) == set(METRICS) >= {series.metric for panel in PANELS for series in panel.all_series()}
    assert run.evaluations == [
        Evaluation(2, {1: Score(35.0, (30.0, 40.0)), 4: Score(36.6, (34.6, 38.6))}, 200),
        Evaluation(10, {1: Score(40.0, (35.0, 45.0))}, 200),
    ]


def test_the_first_score_is_the_headline_and_its_is_the_interval(written):
    scores = {"pass_at_8": 60.0, "pass_at_2": 50.0, "ci95": [55.0, 65.0], "lenient_pass_at_8": 99.0}
    (evaluated,) = load_training_run(written([step_line(1)], {"1": scores})).evaluations
    assert list(evaluated.scores.items()) == [(8, Score(60.0, (55.0, 65.0))), (2, Score(50.0))]


def test_the_later_line_of_a_step_counts(written):
    run = load_training_run(written([step_line(1), step_line(2, reward=0.1), step_line(2, reward=0.9)]))
    assert run.steps == [1, 2]
    assert run.metrics["reward"][1] == 0.9


@pytest.mark.parametrize("rest", ['{"step": 3, "rew', json.dumps(step_line(3)), "{", '{"step": 3, "name": "\udcc3'])
def test_a_line_that_is_being_written_is_ignored_and_left_alone(written, rest):
    folder = written([short_line(1), short_line(2)])
    path = folder / "metrics.jsonl"
    with path.open("a", encoding="utf-8", errors="surrogateescape") as file:
        file.write(rest)
    path.chmod(0o444)
    before = path.read_bytes()
    assert load_training_run(folder).steps == [1, 2]
    assert plot(PlotConfig(run_dir=folder)) == folder / "training_curves.png"
    assert path.read_bytes() == before


def test_what_is_no_run_is_refused_in_one_line(tmp_path):
    absent, file, empty = tmp_path / "absent", tmp_path / "results.json", tmp_path / "empty"
    file.write_text("{}")
    empty.mkdir()
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "metrics.jsonl").write_text('{"step": 1, "rew')
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "metrics.jsonl").write_text('{"step": 1, "bleu": 0.5}\n')
    for path, kind, line in [
        (absent, MissingInputError, f"{absent}: no such folder; expected a run directory of `steerlift train`"),
        (
            file,
            InputError,
            f"{file} is a file, expected a run directory of `train`; give results of `evaluate` by --results-path",
        ),
        (
            empty,
            MissingInputError,
            f"{empty}/metrics.jsonl: no such file; expected a run directory of `steerlift train` with a",
        ),
        (begun, MissingInputError, f"{begun}/metrics.jsonl: no complete step in it; plot again when the first step is done"),
        (
            foreign,
            MissingInputError,
            f"{foreign}/metrics.jsonl: no metric in it that could be drawn, expected some of reward, ",
        ),
    ]:
        with pytest.raises(kind) as caught:
            plot(PlotConfig(run_dir=path))
        assert str(caught.value).startswith(line)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            '{"step": 2, "rew',
            'expected a JSON object, got \'{"step": 2, "rew\'; the file was damaged, repair or delete the line',
        ),
        ("", "expected a JSON object, got ''; the file was damaged, repair or delete the line"),
        ("[2]", "expected a JSON object, got '[2]'; the file was damaged, repair or delete the line"),
        ("x" * 90, f"expected a JSON object, got '{'x' * 40}...'; the file was damaged, repair or delete the line"),
        ('{"reward": 1}', "expected a whole number as step, got None; repair or delete the line"),
        ('{"step": true}', "expected a whole number as step, got True; repair or delete the line"),
        ('{"step": -1}', "expected a whole number as step, got -1; repair or delete the line"),
        ('{"step": 2, "kl": "x"}', "kl: expected a finite number or null, got 'x'; repair or delete the line"),
        ('{"step": 2, "lr": NaN}', "lr: expected a finite number or null, got nan; repair or delete the line"),
        ('{"step": 2, "lr": false}', "lr: expected a finite number or null, got False; repair or delete the line"),
    ],
)
def test_a_damaged_line_is_named(written, line, words):
    folder = written([step_line(1)])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(f"{line}\n{json.dumps(step_line(3))}\n")
    with pytest.raises(InputError) as caught:
        load_training_run(folder)
    assert str(caught.value) == f"{folder / 'metrics.jsonl'}, line 2: {words}"


@pytest.mark.parametrize(
    ("evaluations", "words"),
    [
        ([1], ": expected a JSON object with an evaluation by step, got [1]; repair or delete it"),
        ({"last": {}}, ": step 'last': expected a whole number as step; repair or delete the file"),
        ({"0": 3}, ": step '0': expected an object with pass_at_1, got 3; repair or delete the file"),
        ({"0": {"pass_at_0": 3}}, ": step '0': no score in it (found: pass_at_0); expected pass_at_1 in percent, repair or "),
        (
            {"0": {"pass_at_1": 101}},
            ": step '0': pass_at_1: expected percent from 0 to 100, got 101; repair or delete the file",
        ),
        (
            {"0": {"pass_at_1": None}},
            ": step '0': pass_at_1: expected percent from 0 to 100, got None; repair or delete the file",
        ),
        (
            {"0": {"pass_at_1": 3, "ci95": 4}},
            ": step '0': ci95: expected [low, high] in percent, got 4; repair or delete the file",
        ),
        (
            {"0": {"pass_at_1": 3, "ci95": [4, 2]}},
            ": step '0': ci95: expected [low, high] in percent, got [4, 2] with low above",
        ),
        (
            {"0": {"pass_at_1": 3, "pass_at_2": 3, "pass_at_2_ci95": [-1, 2]}},
            ": step '0': pass_at_2_ci95: expected percent from 0 to 100, got -1; repair or delete the file",
        ),
        (
            {"0": {"pass_at_1": 3, "num_eval_problems": 0}},
            ": step '0': num_eval_problems: expected a whole number above 0, got 0;",
        ),
    ],
)
def test_damaged_evaluations_are_named(written, evaluations, words):
    folder = written([step_line(1)], evaluations)
    with pytest.raises(InputError) as caught:
        load_training_run(folder)
    assert str(caught.value).startswith(f"{folder / 'eval_summary.json'}{words}")


# --- what is drawn ---


def test_every_metric_is_drawn_in_its_panel(run_of):
    run = run_of(3, 4)
    figure = draw_curves(run, CHRISTMAS)
    drawn = {}
    for part in PANELS:
        for series in part.all_series():
            axes = panel(figure, f"{part.title}, right" if series is part.right else part.title)
            line = line_named(axes, series.name)
            assert list(line.get_xdata()) == [1, 2, 3]
            drawn[series.metric] = [value / series.scale for value in line.get_ydata()]
    assert set(drawn) == set(METRICS)
    for metric, values in drawn.items():
        assert values == pytest.approx(run.metrics[metric]), metric
    assert {series.metric for part in PANELS for series in part.all_series() if series.scale == 100} == {
        "accuracy", "lenient_accuracy", "format_rate", "truncated_rate", "no_signal_rate", "clip_rate",
    }  # fmt: skip


def test_every_k_of_the_evaluations_is_a_line_with_whiskers(run_of):
    figure = draw_curves(run_of(40, 4, 16), CHRISTMAS)
    axes = panel(figure, "evaluations")
    assert [line.get_label() for line in axes.lines] == [
        "pass@1  30.0 → 50.0",
        "pass@4  31.6 → 51.6",
        "pass@16  36.4 → 56.4",
    ]
    first = axes.lines[0]
    assert (list(first.get_xdata()), list(first.get_ydata())) == ([0, 20, 40], [30.0, 40.0, 50.0])
    whiskers = [bar.get_segments()[0] for bar in axes.collections]
    assert [(bar[0, 0], bar[0, 1], bar[1, 1]) for bar in whiskers[:3]] == [(0, 25, 35), (20, 35, 45), (40, 45, 55)]
    assert len(whiskers) == 9
    assert [text.get_text() for text in figure.texts] == [
        "Training run final_run",
        "steps 1 to 40, evaluated 3 times on 200 problems, with 95 % intervals",
    ]
    first_cell, second_cell = axes.get_window_extent(), panel(figure, "Reward").get_window_extent()
    assert first_cell.width > 2 * second_cell.width
    assert first_cell.height > 2 * second_cell.height


def test_an_evaluation_without_intervals_and_one_without_a_k(written):
    evaluations = {"0": {"pass_at_1": 10.0}, "1": {"pass_at_1": 20.0, "pass_at_2": 30.0, "num_eval_problems": 1}}
    figure = draw_curves(load_training_run(written([step_line(1)], evaluations)), PLAIN)
    axes = panel(figure, "evaluations")
    assert [line.get_label() for line in axes.lines] == ["pass@1  10.0 → 20.0", "pass@2  30.0"]
    assert len(axes.collections) == 0
    assert figure.texts[1].get_text() == "step 1, evaluated 2 times on 1 problem"


def test_a_long_run_is_smoothed_and_the_legend_says_over_how_many_steps(run_of):
    run = run_of(200)
    figure = draw_curves(run, CHRISTMAS)
    thin, thick = panel(figure, "Reward").lines
    assert list(thin.get_ydata()) == run.metrics["reward"]
    assert thin.get_linewidth() < 1 < thick.get_linewidth()
    assert np.ptp(thick.get_ydata()) < np.ptp(thin.get_ydata())
    assert legend_texts(figure.legends[0]) == ["each step", "running mean of 11 steps"]
    assert len(panel(figure, "Learning rate").lines) == 1
    assert list(line_named(panel(figure, "Learning rate"), "learning").get_ydata()) == [5e-6] * 200
    assert draw_curves(run_of(9), CHRISTMAS).legends == []


def test_the_window_is_odd_and_grows_with_the_run():
    assert [running_window(steps) for steps in (1, 9, 10, 50, 100, 200, 1000)] == [0, 0, 5, 5, 5, 11, 51]


@pytest.mark.parametrize("count", [10, 57])
def test_the_running_mean_is_the_mean_of_what_is_there(count):
    rng = np.random.default_rng(count)
    values = np.where(rng.random(count) < 0.3, np.nan, rng.random(count))
    values[2:9] = np.nan
    for window in (5, 7):
        around = [values[max(0, index - window // 2) : index + window // 2 + 1] for index in range(count)]
        expected = [np.nan if np.isnan(part).all() else np.nanmean(part) for part in around]
        np.testing.assert_allclose(running_mean(values, window), expected)


def test_a_value_that_is_null_leaves_a_gap(written):
    lines = [step_line(step, entropy=None if step == 2 else 0.5) for step in (1, 2, 3)]
    entropy = line_named(panel(draw_curves(load_training_run(written(lines)), PLAIN), "Entropy (nats)"), "entropy")
    np.testing.assert_array_equal(entropy.get_ydata(), [0.5, np.nan, 0.5])


def test_a_panel_without_data_is_left_out_and_the_others_close_up(written):
    older = [
        {
            name: value
            for name, value in step_line(step).items()
            if name not in ("entropy", "grading_seconds", "kl", "clip_rate")
        }
        for step in (1, 2)
    ]
    figure = draw_curves(load_training_run(written(older, {"0": evaluation(30.0)})), PLAIN)
    assert panels(figure) == [
        "evaluations", "Reward", "Accuracy (%)", "Length", "Length, right", "Gradient norm",
        "Learning rate", "Shares (%)", "Seconds",
    ]  # fmt: skip
    assert legend_texts(panel(figure, "Seconds").get_legend()) == ["sample", "update"]
    assert legend_texts(panel(figure, "Shares (%)").get_legend()) == ["no signal"]
    tops = [panel(figure, name).get_position().y1 for name in ("Length", "Gradient norm", "Learning rate")]
    assert len(set(tops)) == 1
    without = draw_curves(load_training_run(written(older, name="unevaluated")), PLAIN)
    assert panels(without) == panels(figure)[1:]
    assert without.texts[1].get_text() == "steps 1 to 2"
    assert without.get_figheight() < figure.get_figheight()


def test_a_line_on_the_right_alone_is_not_read_by_numbers_on_the_left(written):
    line = {"step": 1, "kl": 0.01}
    figure = draw_curves(load_training_run(written([line])), PLAIN)
    assert panels(figure) == ["Shares (%)", "Shares (%), right"]
    assert list(panel(figure, "Shares (%)").get_yticks()) == []


def test_one_step_far_above_the_others_does_not_press_them_flat(written):
    def norms(spike):
        lines = [step_line(step, grad_norm=spike if step == 7 else 0.1 * (step % 3)) for step in range(1, 31)]
        axes = panel(draw_curves(load_training_run(written(lines)), PLAIN), "Gradient norm")
        return axes.get_title(loc="left"), axes.transAxes.inverted().transform(axes.transData.transform((1, 0.2)))[1]

    assert norms(0.5)[0] == "Gradient norm"
    title, height = norms(50.0)
    assert title == "Gradient norm (symlog)"
    assert height > 0.2


def test_the_panels_share_the_step_axis(run_of):
    assert {axes.get_xlim() for axes in draw_curves(run_of(50), PLAIN).axes} == {(-1.0, 51.0)}


def test_the_themes(run_of):
    christmas, plain = (draw_curves(run_of(3), theme) for theme in (CHRISTMAS, PLAIN))
    assert {axes.get_label() for axes in christmas.axes} - {axes.get_label() for axes in plain.axes} == {"tree", "gift"}
    for figure, theme in ((christmas, CHRISTMAS), (plain, PLAIN)):
        assert to_hex(figure.get_facecolor()) == theme.background
        assert to_hex(panel(figure, "evaluations").lines[0].get_color()) == theme.steered


# --- nothing covers anything else ---

LONG_TITLE = "Qwen2.5-7B-Instruct after 1000 steps on MATH with Dr. GRPO, 4 problems x 8 completions, $5 an hour, seed 7111994"
LAYOUTS = {
    "one step": {"steps": 1},
    "three steps": {"steps": 3, "further": (4, 8)},
    "fifty steps": {"steps": 50, "further": (16,), "changes": WITHOUT_KL},
    "hundreds of steps": {"steps": 300, "further": (16, 64)},
    "many k": {"steps": 12, "further": (2, 4, 8, 16, 32, 64, 65, 66, 67, 68, 100)},
    "nothing happens": {"steps": 20, "changes": dict.fromkeys(METRICS, 0.0)},
    "big numbers": {
        "steps": 20,
        "changes": {"mean_length": 32768, "sampling_seconds": 1234.5, "lr": 0.000123, "kl": 0.000123},
    },
    "a spike": {"steps": 20, "changes": {"grading_seconds": 0.01, "update_seconds": 0.01}},
}


def texts_above(axes) -> list[Bbox]:
    """The boxes of a panel's title and legend."""
    title = [text for text in axes.get_children() if isinstance(text, Text) and text.get_text() == axes.get_title(loc="left")]
    legend = [axes.get_legend()] if axes.get_legend() else []
    return [artist.get_window_extent() for artist in (*title, *legend)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_covers_anything_else(run_of, layout):
    parts = {"further": (), "changes": {}, **LAYOUTS[layout]}
    figure = draw_curves(run_of(parts["steps"], *parts["further"], **parts["changes"]), CHRISTMAS, LONG_TITLE)
    figure.draw_without_rendering()
    corners = [axes for axes in figure.axes if axes.get_label() in ("tree", "gift")]
    boxes = [Bbox.union([patch.get_window_extent() for patch in corner.patches]) for corner in corners]
    boxes += [text.get_window_extent() for text in figure.texts] + [legend.get_window_extent() for legend in figure.legends]
    for axes in figure.axes:
        if axes.get_label().endswith(", right") or axes in corners:
            continue
        above = texts_above(axes)
        assert not any(box.overlaps(other) for index, box in enumerate(above) for other in above[:index]), axes.get_label()
        twins = [twin for twin in figure.axes if twin.get_label() == f"{axes.get_label()}, right"]
        boxes.append(Bbox.union([part.get_tightbbox() for part in (axes, *twins)]))
    for index, box in enumerate(boxes):
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1
        assert not any(box.overlaps(other) for other in boxes[:index])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_everything_lies_inside_its_panel(run_of, layout):
    parts = {"further": (), "changes": {}, **LAYOUTS[layout]}
    figure = draw_curves(run_of(parts["steps"], *parts["further"], **parts["changes"]), PLAIN)
    for axes in figure.axes:
        (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
        assert axes.lines
        for line in axes.lines:
            values = np.array(line.get_ydata(), float)
            there = ~np.isnan(values)
            assert there.any()
            assert np.all((left < np.array(line.get_xdata())) & (np.array(line.get_xdata()) < right))
            assert np.all((low < values[there]) & (values[there] < high)), axes.get_label()
        for whisker in axes.collections:
            (_, bottom), (_, top) = whisker.get_segments()[0]
            assert max(low, 0) <= bottom < top <= min(high, 100)


# --- the file and the command ---


@pytest.mark.e2e
def test_a_real_run_has_every_metric_that_is_drawn(tmp_path):
    folder = tmp_path / "run"
    train(
        TrainConfig(
            model_name=saved(tmp_path / "model", untrained()),
            problems=problem_file(tmp_path),
            output_dir=folder,
            train_size=4,
            eval_size=2,
            num_train_iters=1,
            num_chains=2,
            num_completions_eval=4,
            pass_at_k=(1, 4),
            max_completion_length=4,
            beta=0.01,
        )
    )
    run = load_training_run(folder)
    assert [metric for metric in METRICS if not run.has(metric)] == []
    assert [(evaluation.step, list(evaluation.scores), evaluation.problems) for evaluation in run.evaluations] == [
        (0, [1, 4], 2),
        (1, [1, 4], 2),
    ]
    assert all(score.interval for evaluation in run.evaluations for score in evaluation.scores.values())
    assert plot(PlotConfig(run_dir=folder, theme="plain")).stat().st_size > 10_000


def test_a_picture_is_written_into_the_run_directory(written):
    folder = written([short_line(step) for step in range(1, 4)], {"0": evaluation(30.0)})
    path = plot(PlotConfig(run_dir=folder))
    assert path == folder / "training_curves.png"
    assert imread(path).shape[1] == 2336
    assert {file.name for file in folder.iterdir()} == {"metrics.jsonl", "eval_summary.json", "training_curves.png"}


@pytest.mark.parametrize("ending", [".png", ".svg", ".pdf"])
def test_the_same_run_gives_the_same_bytes(written, tmp_path, ending, monkeypatch):
    folder = written([short_line(step) for step in range(1, 13)], {"0": evaluation(30.0, 4), "12": evaluation(40.0, 4)})
    first = plot(PlotConfig(run_dir=folder, output_path=tmp_path / f"first{ending}")).read_bytes()
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")  # another day
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 30.0)  # another user's settings
    monkeypatch.setitem(matplotlib.rcParams, "lines.marker", "x")
    assert plot(PlotConfig(run_dir=folder, output_path=tmp_path / f"second{ending}")).read_bytes() == first


def test_exactly_one_thing_is_drawn():
    with pytest.raises(InputError) as both:
        PlotConfig(RESULTS, run_dir=Path("run"))
    assert str(both.value) == f"got run run and --results-path {RESULTS}: a picture shows one; leave one out"
    with pytest.raises(InputError) as neither:
        PlotConfig(output_path=Path("a.png"))
    assert str(neither.value).startswith("nothing to draw: expected a run directory of `train`, or --results-path")


def test_the_default_paths():
    assert PlotConfig(RESULTS).picture_path() == Path("plots/steering_results.png")
    assert PlotConfig(run_dir=Path("runs/a")).picture_path() == Path("runs/a/training_curves.png")
    assert PlotConfig(run_dir=Path("runs/a"), output_path=Path("b.svg")).picture_path() == Path("b.svg")


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs `steerlift plot` in this process: (exit code, stdout, stderr)."""

    def run(*parts: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["steerlift", "plot", *parts])
        return main(), *capsys.readouterr()

    return run


def test_the_command_prints_the_path_that_it_wrote(command, written, tmp_path, monkeypatch):
    folder = written([short_line(1)], {"0": evaluation(30.0)})
    assert command(str(folder)) == (0, f"{folder / 'training_curves.png'}\n", "")
    svg = str(tmp_path / "new" / "a.svg")
    assert command("--output-path", svg, str(folder), "--theme", "plain", "--title", "Mine") == (0, f"{svg}\n", "")
    assert b"<!-- Mine -->" in Path(svg).read_bytes()
    monkeypatch.chdir(folder)
    assert command(".") == (0, "training_curves.png\n", "")
    assert load_training_run(Path()).name == "final_run"


def test_the_command_still_draws_results(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command("--results-path", str(RESULTS)) == (0, "plots/steering_results.png\n", "")
    assert (tmp_path / "plots" / "steering_results.png").is_file()


def test_a_mistake_is_one_line_and_exit_code_2(command, written):
    folder = str(written([short_line(1)]))
    for parts, message in [
        ([], "error: nothing to draw: "),
        ([folder, "--results-path", "r.json"], f"error: got run {folder} and --results-path r.json: "),
        ([folder, "--output-path", "a.gif"], "error: a.gif: unknown ending '.gif'"),
        (["absent"], "error: absent: no such folder"),
    ]:
        code, out, err = command(*parts)
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        assert err.startswith(message)
