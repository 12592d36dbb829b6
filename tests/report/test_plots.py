"""The picture: what is drawn where, that nothing covers anything else, and that the same results give the same bytes."""

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.transforms import Bbox

from steerlift.records.errors import InputError, MissingInputError
from steerlift.report.config import PlotConfig
from steerlift.report.plots import draw, plot
from steerlift.report.results import Arm, Results, load_results
from steerlift.report.themes import CHRISTMAS, PLAIN

HEADLINE = Path(__file__).parent / "original_headline.json"


@pytest.fixture
def headline():
    """The published figures of the original experiment, in its bare file shape."""
    return load_results(HEADLINE)


def arm(score, half=3.0):
    return Arm(score, (max(0.0, score - half), min(100.0, score + half)), 400)


def with_everything(weights=6):
    """All additions: intervals, a random control, a chosen weight."""
    steered = {round(0.25 * (index + 1), 2): arm(min(100.0, 20.0 + 7 * index)) for index in range(weights)}
    control = {weight: arm(30.0 - 5 * weight) for weight in steered}
    return Results(1, arm(31.0625), arm(89.5), steered, control, next(iter(steered)))


def panel(figure: Figure):
    return next(axes for axes in figure.axes if axes.get_label() == "panel")


def line_named(figure: Figure, start: str):
    return next(line for line in panel(figure).lines if line.get_label().startswith(start))


def legend_texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def written_texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


# --- what is drawn ---


def test_without_a_fine_tuned_model_there_is_no_line_of_it():
    figure = draw(Results(1, arm(30.0), None, {1.0: arm(45.0)}, {}, None), CHRISTMAS)
    assert len(legend_texts(figure)) == 2
    assert not any(text.startswith("Fine-tuned") for text in legend_texts(figure))


def test_the_headline_figures_are_drawn_as_the_original_draws_them(headline):
    figure = draw(headline, CHRISTMAS)
    steered, base, finetuned = (line_named(figure, name) for name in ("Base + steering", "Base 3", "Fine-tuned"))
    assert list(steered.get_xdata()) == [0.1, 0.15, 0.2, 0.25, 0.3, 0.35]
    assert list(steered.get_ydata()) == [41.5, 47.5, 50, 47.5, 47.75, 52.75]
    assert (steered.get_linestyle(), steered.get_marker()) == ("-", "o")
    assert (set(base.get_ydata()), set(finetuned.get_ydata())) == ({33.75}, {56.0})
    assert base.is_dashed()
    assert finetuned.is_dashed()
    assert legend_texts(figure) == ["Base 33.75 %", "Fine-tuned 56 %", "Base + steering"]
    assert written_texts(figure) == ["Steering vectors against fine-tuning: pass@1", "20 problems"]
    axes = panel(figure)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("Steering weight", "pass@1 (%)")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.1", "0.15", "0.2", "0.25", "0.3", "0.35"]
    assert [text.get_text() for text in axes.texts] == ["41.5", "47.5", "50", "47.5", "47.75", "52.75"]
    assert len(axes.patches) == len(axes.collections) == 0  # no intervals in the file, so no bands


def test_the_christmas_colours(headline):
    figure = draw(headline, CHRISTMAS)
    axes = panel(figure)
    ivory, forest_green = "#fffff0", "#14532d"
    assert to_hex(figure.get_facecolor()) == to_hex(axes.get_facecolor()) == ivory
    frame = {to_hex(spine.get_edgecolor()) for spine in axes.spines.values() if spine.get_visible()}
    ticks = {to_hex(line.get_color()) for axis in (axes.xaxis, axes.yaxis) for line in axis.get_ticklines()}
    assert frame == ticks == {to_hex(figure.texts[0].get_color())} == {forest_green}
    red, green, blue = (int(CHRISTMAS.steered[start : start + 2], 16) for start in (1, 3, 5))
    assert red > 3 * max(green, blue)
    assert {axes.get_label() for axes in figure.axes} == {"panel", "tree", "gift"}
    assert {axes.get_label() for axes in draw(headline, PLAIN).axes} == {"panel"}


def test_additions_are_drawn():
    results = with_everything()
    figure = draw(results, CHRISTMAS)
    assert legend_texts(figure) == [
        "Base 31.06 %",
        "Fine-tuned 89.5 %",
        "Base + steering",
        "Chosen weight 0.25",
        "Random vector, best 28.75 %",
    ]
    assert written_texts(figure)[1] == "400 problems, with 95 % intervals"
    band = panel(figure).collections[0].get_paths()[0].get_extents()
    assert (band.x0, band.x1, band.y0, band.y1) == (0.25, 1.5, 17.0, 58.0)
    spans = [patch.get_bbox() for patch in panel(figure).patches]
    assert [(span.y0, span.y1) for span in spans] == [results.base.interval, results.finetuned.interval]
    star = line_named(figure, "Chosen")
    assert (list(star.get_xdata()), list(star.get_ydata()), star.get_marker()) == ([0.25], [20.0], "*")
    control = line_named(figure, "Random")
    assert control.get_linestyle() == ":"
    assert list(control.get_ydata()) == [arm.score for arm in results.control.values()]


def test_intervals_that_not_all_weights_have_become_bars():
    results = Results(1, Arm(20.0), Arm(90.0), {0.5: arm(40.0), 1.0: Arm(60.0)}, {0.5: arm(21.0)}, None)
    bars = [bar.get_segments()[0] for bar in panel(draw(results, PLAIN)).collections]
    assert [(bar[0, 1], bar[1, 1]) for bar in bars] == [(37.0, 43.0), (18.0, 24.0)]
    assert legend_texts(draw(results, PLAIN))[-1] == "Random vector 21 %"


@pytest.mark.parametrize(
    ("counts", "words"),
    [([1, 1], "1 problem"), ([18, 20], "18 to 20 problems"), ([None, None], "number of problems not in the file")],
)
def test_the_number_of_problems_is_stated(counts, words):
    results = Results(1, Arm(20.0, None, counts[0]), Arm(90.0, None, counts[1]), {1.0: Arm(50.0)}, {}, None)
    assert written_texts(draw(results, PLAIN))[1] == words


def test_k_and_the_title_are_the_users():
    results = Results(8, Arm(20.0), Arm(90.0), {1.0: Arm(50.0)}, {}, None)
    assert written_texts(draw(results, PLAIN))[0] == "Steering vectors against fine-tuning: pass@8"
    assert panel(draw(results, PLAIN)).get_ylabel() == "pass@8 (%)"
    assert written_texts(draw(results, PLAIN, "From $5 to $6"))[0] == "From $5 to $6"


def test_crowded_weights_get_fewer_ticks_and_only_the_chosen_score():
    steered = {0.001 * 2**index: Arm(20.0 + index) for index in range(14)}
    figure = draw(Results(1, Arm(20.0), Arm(90.0), steered, {}, 0.512), PLAIN)
    assert len(panel(figure).get_xticks()) < 10
    assert [text.get_text() for text in panel(figure).texts] == ["29"]


# --- nothing covers anything else ---


def one_weight(score):
    return Results(1, Arm(score, None, 20), Arm(score, None, 20), {0.5: Arm(score, None, 20)}, {}, 0.5)


def zigzag():
    steered = {0.5 * (index + 1): arm(score) for index, score in enumerate((0.0, 100.0, 3.0, 97.0, 0.0, 50.0))}
    return Results(1, arm(0.0), arm(100.0), steered, {}, 1.5)


LAYOUTS = {
    "headline": lambda: load_results(HEADLINE),
    "one weight": lambda: with_everything(1),
    "six weights": with_everything,
    "twelve weights": lambda: with_everything(12),
    "all wrong": lambda: one_weight(0.0),
    "all right": lambda: one_weight(100.0),
    "from 0 to 100": zigzag,
}


@pytest.mark.parametrize(("layout", "theme"), [*((layout, CHRISTMAS) for layout in LAYOUTS), ("six weights", PLAIN)])
def test_nothing_covers_anything_else(layout, theme):
    title = "A title that goes on and on: Qwen2.5-7B-Instruct after 750 steps on MATH, 28 vectors of the prompt's mean"
    figure = draw(LAYOUTS[layout](), theme, title)
    figure.draw_without_rendering()
    axes = panel(figure)
    boxes = [figure.legends[0].get_window_extent(), axes.get_tightbbox()]
    boxes += [text.get_window_extent() for text in figure.texts]
    boxes += [Bbox.union([patch.get_window_extent() for patch in corner.patches]) for corner in figure.axes if corner != axes]
    for index, box in enumerate(boxes):
        assert figure.bbox.x0 <= box.x0
        assert box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0
        assert box.y1 <= figure.bbox.y1
        assert not any(box.overlaps(other) for other in boxes[:index])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_everything_lies_inside_the_panel(layout):
    results = LAYOUTS[layout]()
    figure = draw(results, CHRISTMAS)
    axes = panel(figure)
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    assert all(left < weight < right for weight in [*results.steered, *results.control])
    assert all(low < value < high for arm in results.arms() for value in (arm.score, *(arm.interval or ())))
    assert all(0 <= tick <= 100 for tick in axes.get_yticks())
    assert len(axes.get_yticks()) >= 3
    inside = axes.get_window_extent()
    labels = [text.get_window_extent() for text in axes.texts]
    assert len(labels) == len(results.steered)
    for label in labels:
        assert inside.x0 < label.x0 < label.x1 < inside.x1
        assert inside.y0 < label.y0 < label.y1 < inside.y1
    assert not any(a.overlaps(b) for index, a in enumerate(labels) for b in labels[:index])


# --- the file ---


def test_a_picture_is_written_where_it_was_asked_for(tmp_path):
    path = tmp_path / "new" / "picture.png"
    assert plot(PlotConfig(HEADLINE, path)) == path
    pixels = imread(path)
    assert pixels.shape == (1040, 1600, 4)
    assert list((pixels[2, 2] * 255).round()) == [255, 255, 240, 255]
    assert [file.name for file in path.parent.iterdir()] == ["picture.png"]


@pytest.mark.parametrize("ending", [".png", ".svg", ".pdf"])
def test_the_same_results_give_the_same_bytes(tmp_path, ending, monkeypatch):
    first = plot(PlotConfig(HEADLINE, tmp_path / f"first{ending}")).read_bytes()
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")  # another day
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 30.0)  # another user's settings
    monkeypatch.setitem(matplotlib.rcParams, "axes.facecolor", "black")
    assert plot(PlotConfig(HEADLINE, tmp_path / f"second{ending.upper()}")).read_bytes() == first
    assert matplotlib.rcParams["font.size"] == 30.0


def test_vector_formats_are_what_their_ending_says(tmp_path):
    svg = plot(PlotConfig(HEADLINE, tmp_path / "a.svg", theme="plain"))
    assert ElementTree.parse(svg).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    assert plot(PlotConfig(HEADLINE, tmp_path / "a.pdf")).read_bytes().startswith(b"%PDF-")


@pytest.mark.parametrize(("name", "ending"), [("a.jpg", ".jpg"), ("picture", "")])
def test_an_unknown_ending_is_refused_before_anything_is_written(tmp_path, name, ending):
    with pytest.raises(InputError) as caught:
        plot(PlotConfig(HEADLINE, tmp_path / name))
    assert str(caught.value) == f"{tmp_path / name}: unknown ending {ending!r}; expected one of .png, .svg, .pdf"
    assert list(tmp_path.iterdir()) == []


def test_a_missing_or_useless_file_leaves_an_older_picture_alone(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"older")
    with pytest.raises(MissingInputError):
        plot(PlotConfig(tmp_path / "absent.json", path))
    useless = tmp_path / "results.json"
    useless.write_text(json.dumps({"base_model": {"pass_at_1": 30.0}}))
    with pytest.raises(InputError, match="no 'finetuned_model' in it"):
        plot(PlotConfig(useless, path))
    assert path.read_bytes() == b"older"


def test_neither_pyplot_nor_torch_is_imported_and_the_config_imports_neither_matplotlib_nor_numpy(tmp_path):
    code = (
        "import sys; from pathlib import Path; from steerlift.report.config import PlotConfig\n"
        "print([m for m in ('matplotlib', 'numpy', 'torch') if m in sys.modules])\n"
        "from steerlift.report.plots import plot\n"
        f"plot(PlotConfig(Path({str(HEADLINE)!r}), Path({str(tmp_path / 'a.png')!r})))\n"
        "print([m for m in ('matplotlib.pyplot', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n[]\n"
