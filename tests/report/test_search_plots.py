"""The pictures of a search: what is drawn where, with one parameter and with many; the same search gives the same bytes."""

import json
import random

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.image import imread

from steerlift.records.errors import InputError, MissingInputError
from steerlift.report.search_plots import STOPPED, draw_history, draw_parallel, draw_slices, plot_search
from steerlift.report.search_tables import print_search
from steerlift.report.search_trials import load_search
from steerlift.report.themes import PLAIN

PICTURES = ["search_history.png", "search_slices.png", "search_parallel.png"]


def content(*weights: str, vectors: bool = False, layers: bool = False, trials: int = 12) -> dict:
    """A search whose score is highest where all weights are 1."""
    rng = random.Random(0)
    rows = []
    for number in range(trials):
        params = {"vectors": rng.choice(["completion_increments", "prompt_mean"])} if vectors else {}
        params |= {name: rng.uniform(0, 2) for name in weights}
        params |= {"layer_from": rng.randrange(8), "layer_to": rng.randrange(8)} if layers else {}
        score = 80 - 20 * sum(abs(params[name] - 1) for name in weights) / len(weights)
        stopped = number % 3 == 2
        state = "pruned" if stopped else "complete"
        rows.append({"number": number, "params": params, "state": state, "problems": 25 if stopped else 100, "score": score})
    best = max((row for row in rows if row["state"] == "complete"), key=lambda row: row["score"])
    return {
        "trials": rows,
        "best": {name: best[name] for name in ("number", "params", "score", "problems")},
        "baseline": {"score": 30.0, "problems": 100},
        "settings": {"pass_at_k": 1, "weight_range": [0.0, 2.0]},
    }


@pytest.fixture
def write(tmp_path):
    def write(search):
        path = tmp_path / "search.json"
        path.write_text(json.dumps(search))
        return path

    return write


@pytest.fixture
def search(write):
    """One of two vectors, two weights, a range of layers."""
    return load_search(write(content("weight 0-3", "weight 4-7", vectors=True, layers=True)))


def labels(figure) -> set[str]:
    return {str(axes.get_label()) for axes in figure.axes}


def panel(figure, label: str):
    return next(axes for axes in figure.axes if axes.get_label() == label)


# --- what is drawn ---


def test_the_history_shows_every_trial_the_best_so_far_and_the_base(search):
    lines = {line.get_label(): line for line in panel(draw_history(search), "history").lines}
    complete = [trial for trial in search.trials if trial.complete]
    assert list(lines["judged on all problems"].get_xdata()) == [trial.number for trial in complete]
    assert list(lines["judged on all problems"].get_ydata()) == [trial.score for trial in complete]
    assert list(lines["stopped on fewer problems"].get_xdata()) == [2, 5, 8, 11]
    best = list(lines["best so far"].get_ydata())
    assert best == sorted(best)
    assert best[0] == complete[0].score
    assert best[-1] == search.best.score
    assert (list(lines["best"].get_xdata()), list(lines["best"].get_ydata())) == ([search.best.number], [search.best.score])
    assert set(lines["base alone 30 %"].get_ydata()) == {30.0}


def test_every_parameter_has_a_panel_and_every_pair_another(search):
    names = ["vectors", "weight 0-3", "weight 4-7", "layer_from", "layer_to"]
    pairs = {f"{across} x {up}" for place, up in enumerate(names) for across in names[:place]}
    figure = draw_slices(search)
    assert labels(figure) == {*names, *pairs, "colours"}
    dots = [line for line in panel(figure, "weight 0-3").lines if line.get_marker() == "o"]
    assert [(d.get_xdata()[0], d.get_ydata()[0]) for d in dots] == [(t.params["weight 0-3"], t.score) for t in search.complete]
    colours = [to_hex(dot.get_color()) for dot in dots]
    assert colours[-1] != colours[0]
    assert STOPPED not in colours
    words = [text.get_text() for text in panel(figure, "vectors x layer_to").get_xticklabels()]
    assert words == ["completion increments", "prompt mean"]


def test_many_parameters_are_drawn_without_their_pairs(write):
    names = [f"weight {layer}" for layer in range(9)]
    assert labels(draw_slices(load_search(write(content(*names))))) == {*names, "colours"}


def test_parallel_lines_go_through_all_parameters_to_the_score(search):
    axes = panel(draw_parallel(search), "parallel")
    through = [line for line in axes.lines if len(line.get_xdata()) == 6]
    assert len(through) == len(search.complete)
    assert all(0 <= height <= 1 for line in axes.lines if len(line.get_xdata()) > 2 for height in line.get_ydata())
    assert to_hex(through[-1].get_color()) == PLAIN.steered
    assert through[-1].get_ydata()[-1] == 1
    short = [line for line in axes.lines if len(line.get_xdata()) == 5]
    assert len(short) == len(search.stopped)
    assert {to_hex(line.get_color()) for line in short} == {STOPPED}


@pytest.mark.parametrize("weights", [("weight",), ("weight 0", "weight 1", "weight 2")])
@pytest.mark.parametrize("draw", [draw_history, draw_slices, draw_parallel])
def test_nothing_is_cut_off_at_the_edges(write, weights, draw):
    figure = draw(load_search(write(content(*weights, vectors=len(weights) == 1))))
    box = figure.get_tightbbox(FigureCanvasAgg(figure).get_renderer())
    assert box.x0 >= 0
    assert box.y0 >= 0
    assert box.x1 <= figure.get_figwidth()
    assert box.y1 <= figure.get_figheight()


# --- files ---


def test_the_same_search_gives_the_same_bytes(write):
    path = write(content("weight"))
    assert plot_search(path) == [path.with_name(name) for name in PICTURES]
    first = [path.with_name(name).read_bytes() for name in PICTURES]
    plot_search(path)
    assert [path.with_name(name).read_bytes() for name in PICTURES] == first
    assert imread(path.with_name(PICTURES[0])).std() > 0.05
    assert {file.name for file in path.parent.iterdir()} == {*PICTURES, "search.json"}


@pytest.mark.parametrize(
    "change",
    [
        {"trials": []},
        {"trials": [{**row, "state": "complete", "score": 40.0} for row in content("weight")["trials"]]},
        {"trials": content("weight")["trials"][:1], "best": content("weight")["trials"][0]},
    ],
    ids=["no trials", "equal scores", "one trial"],
)
def test_odd_searches_are_drawn_or_refused(write, change):
    path = write({**content("weight"), **change})
    if change["trials"]:
        assert len(plot_search(path)) == 3
    else:
        with pytest.raises(InputError, match="is no file of a search"):
            plot_search(path)


def test_what_is_no_search_is_refused(tmp_path, write):
    with pytest.raises(InputError, match=r"search\.json is no file of a search"):
        plot_search(write({"base_model": {}}))
    with pytest.raises(MissingInputError, match="no such file"):
        plot_search(tmp_path / "absent.json")


# --- the table ---


def test_the_table_shows_the_best_trials_first(capsys):
    found = content("weight", vectors=True)
    print_search(found)
    out = capsys.readouterr().out
    rows = [line.split("│")[1:5] for line in out.splitlines() if line.startswith("│")]
    scores = [float(row[1]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert int(rows[0][0]) == found["best"]["number"]
    assert "12 trials: 8 judged on all 100 development problems, 4 stopped earlier; the base alone scores 30.0 %" in out
    assert "do not help" not in out
    print_search({**found, "baseline": {"score": 99.0, "problems": 100}})
    assert "no trial was better than the base alone" in capsys.readouterr().out
