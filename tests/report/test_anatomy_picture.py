"""The picture and the tables of an inspection."""

import random

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.transforms import Bbox

from steerlift.report.anatomy import draw_anatomy, save_anatomy, vectors_name
from steerlift.report.anatomy_tables import print_inspection, visible


def inspection_of(layers: int, positions: int = 0, others: int = 0, measured: bool = True) -> dict:
    """Made-up numbers in the form of `steerlift inspect`."""
    rng = random.Random(layers)
    tokens = {name: [{"id": 5, "text": f" {name[0]}[b]\n", "score": 2.0}] for name in ("promoted", "suppressed")}
    more = {"residual_norm": 100.0, "ratio": 0.5, **tokens} if measured else {}
    inspection = {
        "vectors": {"path": "runs/a/vectors.safetensors", "hidden_size": 64, "method": "mean_difference", "seed": "3"},
        "layers": [{"layer": index, "norm": 1 + rng.random(), **more} for index in range(layers)],
        "cosines": [[1.0 if i == j else rng.uniform(-1, 1) for j in range(layers)] for i in range(layers)],
        "others": [
            {"path": f"runs/{n}/vectors.safetensors", "cosines": [None, *(rng.uniform(-0.2, 1) for _ in range(layers - 1))]}
            for n in range(others)
        ],
        "left_out": [],
    }
    if positions:
        rows = [{"position": p, "kl": rng.random(), "completions": 64 - 63 * p // positions} for p in range(positions)]
        token = {"position": 2, "kl": 0.9, "before": "is ", "token": "[/b]", "base_token": "\n"}
        probabilities = {"finetuned_probability": 0.75, "base_probability": 0.01}
        numbers = {"completions": 64, "tokens": sum(row["completions"] for row in rows), "mean": 0.25}
        inspection["divergence"] = {**numbers, "positions": rows, "largest": [{**token, **probabilities}]}
    return inspection


def panel(figure: Figure, label: str):
    return next(axes for axes in figure.axes if axes.get_label() == label)


def test_norms_are_bars_and_shares_a_line():
    inspection = inspection_of(4)
    figure = draw_anatomy(inspection)
    bars = panel(figure, "norms").patches
    assert [bar.get_height() for bar in bars] == [row["norm"] for row in inspection["layers"]]
    assert [bar.get_center()[0] for bar in bars] == pytest.approx([0, 1, 2, 3])
    (shares,) = panel(figure, "norms, right").lines
    assert list(shares.get_ydata()) == [50.0] * 4


def test_without_models_there_are_norms_and_cosines_only():
    figure = draw_anatomy(inspection_of(4, measured=False))
    assert [axes.get_label() for axes in figure.axes] == ["norms", "cosines"]


def test_cosines_are_a_map_with_numbers_where_there_is_room():
    few, many = inspection_of(3), inspection_of(30)
    axes = panel(draw_anatomy(few), "cosines")
    np.testing.assert_allclose(axes.images[0].get_array(), few["cosines"])
    assert axes.images[0].get_clim() == (-1, 1)
    assert [text.get_text() for text in axes.texts] == [f"{cosine:.2f}" for row in few["cosines"] for cosine in row]
    axes = panel(draw_anatomy(many), "cosines")
    assert not axes.texts
    assert [label.get_text() for label in axes.get_xticklabels()] == [str(layer) for layer in range(0, 30, 3)]


def test_other_vectors_are_lines_with_gaps():
    inspection = inspection_of(5, others=2)
    axes = panel(draw_anatomy(inspection), "others")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["0/vectors", "1/vectors"]
    assert np.isnan(axes.lines[0].get_ydata()[0])
    assert list(axes.lines[0].get_ydata()[1:]) == inspection["others"][0]["cosines"][1:]


def test_the_kl_is_a_line_over_how_many_get_there():
    inspection = inspection_of(3, positions=20)
    figure = draw_anatomy(inspection)
    line, mean = panel(figure, "divergence").lines
    assert list(line.get_ydata()) == [row["kl"] for row in inspection["divergence"]["positions"]]
    assert set(mean.get_ydata()) == {0.25}
    assert panel(figure, "divergence").get_zorder() > panel(figure, "divergence, right").get_zorder()
    (ground,) = panel(figure, "divergence, right").collections
    assert ground.get_paths()[0].vertices[:, 1].max() == 64


LAYOUTS = {
    "one layer": inspection_of(1, positions=1),
    "three layers": inspection_of(3, positions=20, others=1),
    "thirty layers": inspection_of(30, positions=60),
    "eighty layers, long completions": inspection_of(80, positions=512, others=6),
    "vectors alone": inspection_of(28, measured=False),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_covers_anything_else(layout):
    figure = draw_anatomy(LAYOUTS[layout])
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.texts]
    for name in ("norms", "cosines", "others", "divergence"):
        parts = [axes for axes in figure.axes if axes.get_label().split(",")[0] == name]
        if parts:
            boxes.append(Bbox.union([part.get_tightbbox() for part in parts]))
    assert len(boxes) >= 4
    for index, box in enumerate(boxes):
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1
        assert not any(box.overlaps(other) for other in boxes[:index])


def test_the_same_inspection_gives_the_same_bytes(tmp_path, monkeypatch):
    inspection = inspection_of(3, positions=20, others=1)
    save_anatomy(inspection, tmp_path / "first.png")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")  # another day
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 30.0)  # another user's settings
    save_anatomy(inspection, tmp_path / "second.png")
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()
    assert imread(tmp_path / "first.png").shape[1] == 2560
    assert len(list(tmp_path.iterdir())) == 2


def cells(out: str) -> list[list[str]]:
    rows = [line.replace("┃", "│").split("│") for line in out.splitlines() if line[:1] in "┃│"]
    return [[cell.strip() for cell in row[1:-1]] for row in rows]


def test_the_tables_show_whitespace_and_take_no_token_for_markup(capsys, tmp_path):
    inspection = inspection_of(2, positions=3, others=1)
    print_inspection(inspection, [tmp_path / "a.json"])
    out = capsys.readouterr().out
    layers, tokens = cells(out)[:3], cells(out)[3:]
    first, second = inspection["layers"]
    between, other = inspection["cosines"][1][0], inspection["others"][0]["cosines"][1]
    shown = ["␣p[b]\\n", "␣s[b]\\n"]
    assert layers == [
        [
            "layer",
            "norm",
            "residual norm",
            "share %",
            "cosine to layer below",
            "cosine with 0/vectors",
            "promoted",
            "suppressed",
        ],
        ["0", f"{first['norm']:.3f}", "100.000", "50.0", "", "", *shown],
        ["1", f"{second['norm']:.3f}", "100.000", "50.0", f"{between:.2f}", f"{other:.2f}", *shown],
    ]
    assert tokens == [
        ["position", "KL", "after", "token", "base would say", "p fine-tuned", "p base"],
        ["2", "0.900", "is␣", "[/b]", "\\n", "0.750", "0.010"],
    ]
    assert out.splitlines()[-1] == f"wrote {tmp_path / 'a.json'}"


def test_vectors_alone_have_a_table_of_norms_and_cosines(capsys):
    print_inspection(inspection_of(2, measured=False), [])
    assert cells(capsys.readouterr().out)[0] == ["layer", "norm", "cosine to layer below"]


def test_names():
    assert vectors_name("runs/demo0/vectors.safetensors") == "demo0/vectors"
    assert vectors_name("vectors.json") == "vectors"
    assert visible(" a\tb\n\u200b🎄") == "␣a\\tb\\n\\u200b🎄"
