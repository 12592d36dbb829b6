"""The picture of an inspection: norms and cosines of the vectors by layer, and the KL between the models by position.

As in `plots`, only Figure objects are used, and the same inspection gives the same picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerlift.records.runs import replacing
from steerlift.report.plots import DATELESS, DOTS_PER_INCH
from steerlift.report.themes import PLAIN, Theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Inches: a row of panels by layer, below it the one by position.
ROW, HEADER, GAP, FOOTER, LEFT, RIGHT = 3.4, 1.3, 1.05, 0.65, 0.85, 0.85
WIDTHS = {2: 12.0, 3: 16.0}
# Between the panels of the upper row: an axis on the right, and one on the left.
BETWEEN = 1.75
# More layers' cosines are shown by colour alone.
MOST_WRITTEN_LAYERS = 8
# More layers get thin bars.
MOST_BROAD_BARS = 12


def save_anatomy(inspection: Mapping[str, Any], path: Path) -> None:
    """Draws the numbers of `steerlift inspect` into the PNG at `path`."""
    from matplotlib import style

    with style.context("default"):
        figure = draw_anatomy(inspection)
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png", dpi=DOTS_PER_INCH, metadata=DATELESS[".png"])


def draw_anatomy(inspection: Mapping[str, Any], theme: Theme = PLAIN) -> Figure:
    """The figure: norms, cosines between layers and with other vectors, and below them the KL where it was measured."""
    from matplotlib.figure import Figure

    below = (GAP + ROW) if "divergence" in inspection else 0.0
    panels = 3 if inspection["others"] else 2
    width, height = WIDTHS[panels], HEADER + ROW + below + FOOTER
    figure = Figure(figsize=(width, height), facecolor=theme.background)
    # The heat map is square; the others share what is left.
    wide = (width - LEFT - RIGHT - ROW - BETWEEN * (panels - 1)) / (panels - 1)
    bottom = (FOOTER + below) / height
    lefts = [LEFT, LEFT + wide + BETWEEN, LEFT + wide + ROW + 2 * BETWEEN]

    def panel(index: int, inches: float, name: str) -> Axes:
        place = (lefts[index] / width, bottom, inches / width, ROW / height)
        return figure.add_axes(place, label=name, facecolor=theme.panel)

    _draw_norms(panel(0, wide, "norms"), inspection["layers"], theme)
    _draw_cosines(panel(1, ROW, "cosines"), inspection, theme)
    if inspection["others"]:
        _draw_others(panel(2, wide, "others"), inspection, theme)
    if "divergence" in inspection:
        place = (LEFT / width, FOOTER / height, (width - LEFT - RIGHT) / width, ROW / height)
        _draw_divergence(figure.add_axes(place, label="divergence", facecolor=theme.panel), inspection["divergence"], theme)
    centred: dict[str, Any] = {"ha": "center", "va": "center", "parse_math": False}
    title = f"Anatomy of {vectors_name(inspection['vectors']['path'])}"
    figure.text(0.5, 1 - 0.36 / height, title, color=theme.frame, size=17, weight="bold", **centred)
    figure.text(0.5, 1 - 0.7 / height, _subtitle(inspection), color=theme.quiet, size=10.5, **centred)
    return figure


def vectors_name(path: str) -> str:
    """A short name of a file of vectors that still tells runs apart: its folder and its own name without the ending."""
    return "/".join(Path(path).with_suffix("").parts[-2:])


def _subtitle(inspection: Mapping[str, Any]) -> str:
    origin = inspection["vectors"]
    words = [origin[key] for key in ("method",) if key in origin]
    words += [f"{origin['tokens']} tokens"] if "tokens" in origin else []
    words += [f"seed {origin['seed']}"] if "seed" in origin else []
    words += [f"{len(inspection['layers'])} layers", f"hidden size {origin['hidden_size']}"]
    return ", ".join(words)


def _draw_norms(axes: Axes, layers: list[Mapping[str, Any]], theme: Theme) -> None:
    """Bars for the norms and, over an axis of its own, a line for their share of the residual stream's."""
    indices = [row["layer"] for row in layers]
    width = 0.62 if len(layers) <= MOST_BROAD_BARS else 0.8
    axes.bar(indices, [row["norm"] for row in layers], width, color=theme.steered, alpha=0.85, label="norm")
    axes.set_xlim(min(indices) - 0.6, max(indices) + 0.6)
    axes.set_ylim(0, 1.12 * max(max(row["norm"] for row in layers), 1e-9))
    _dress(axes, "Norm of each layer's vector", "Decoder layer", theme)
    axes.set_ylabel("Norm", color=theme.steered, size=10.5)
    axes.tick_params(axis="y", colors=theme.steered)
    if "ratio" not in layers[0]:
        return
    right = axes.twinx()
    right.set_label("norms, right")
    shares = [100 * row["ratio"] for row in layers]
    right.plot(indices, shares, "o-", color=theme.base, lw=2.0, ms=5.5, mec=theme.panel, mew=0.8)
    right.set_ylim(0, 1.12 * max(max(shares), 1e-9))
    right.set_ylabel("Share of the residual's norm (%)", color=theme.base, size=10.5)
    right.tick_params(colors=theme.base, labelsize=9, length=3)
    right.spines[:].set_visible(False)


def _draw_cosines(axes: Axes, inspection: Mapping[str, Any], theme: Theme) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("cosine", [theme.base, theme.panel, theme.steered])
    cosines = inspection["cosines"]
    image = axes.imshow(cosines, cmap=colours, vmin=-1, vmax=1, origin="lower")
    indices = [row["layer"] for row in inspection["layers"]]
    # At most ten layers are named, the first among them.
    named = range(0, len(indices), -(-len(indices) // 10))
    for set_ticks in (axes.set_xticks, axes.set_yticks):
        set_ticks(list(named), [str(indices[place]) for place in named])
    if len(indices) <= MOST_WRITTEN_LAYERS:
        for row, line in enumerate(cosines):
            for column, cosine in enumerate(line):
                axes.text(column, row, f"{cosine:.2f}", color=theme.frame, size=9, ha="center", va="center")
    _dress(axes, "Cosine between layers", "Decoder layer", theme)
    axes.grid(visible=False)
    axes.set_ylabel("Decoder layer", color=theme.frame, size=10.5)
    beside = axes.inset_axes((1.04, 0, 0.045, 1))
    beside.set_label("cosines, scale")
    bar = axes.figure.colorbar(image, cax=beside, ticks=[-1, -0.5, 0, 0.5, 1])
    bar.ax.tick_params(colors=theme.frame, labelsize=9, length=3)
    bar.outline.set(edgecolor=theme.frame, linewidth=0.8)


def _draw_others(axes: Axes, inspection: Mapping[str, Any], theme: Theme) -> None:
    """A line per other file of vectors, with gaps at layers that it does not have."""
    colours = (theme.steered, theme.base, theme.finetuned, theme.control, theme.frame)
    layers = [row["layer"] for row in inspection["layers"]]
    lowest = 0.0
    for index, other in enumerate(inspection["others"]):
        cosines = [float("nan") if cosine is None else cosine for cosine in other["cosines"]]
        lowest = min(lowest, *(cosine for cosine in other["cosines"] if cosine is not None))
        dashes = ("-", "--", ":")[index // len(colours) % 3]
        line: dict[str, Any] = {"color": colours[index % len(colours)], "lw": 2.0, "ms": 5, "mec": theme.panel}
        axes.plot(layers, cosines, dashes, marker="o", label=vectors_name(other["path"]), **line)
    if lowest < 0:
        axes.axhline(0, color=theme.quiet, lw=0.9)
    axes.set_ylim(-1.05 if lowest < 0 else 0, 1.05)
    _dress(axes, "Cosine with other vectors", "Decoder layer", theme)
    axes.legend(fontsize=9, labelcolor="linecolor", loc="best", facecolor=theme.panel, edgecolor="none", framealpha=0.85)


def _draw_divergence(axes: Axes, divergence: Mapping[str, Any], theme: Theme) -> None:
    """The mean KL at each position, before a grey ground that says how many completions get that far."""
    from matplotlib import patheffects
    from matplotlib.ticker import MaxNLocator

    positions = [row["position"] for row in divergence["positions"]]
    reached = axes.twinx()
    reached.set_label("divergence, right")
    counts = [row["completions"] for row in divergence["positions"]]
    reached.fill_between(positions, counts, step="mid", color=theme.control, alpha=0.16, linewidth=0)
    reached.set_ylim(0, 1.12 * counts[0])
    reached.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    reached.set_ylabel("Completions that get this far", color=theme.quiet, size=10.5)
    reached.tick_params(colors=theme.quiet, labelsize=9, length=3)
    reached.spines[:].set_visible(False)
    # The axes of the line lie over those of the ground, which would be hidden by their colour.
    axes.set_zorder(reached.get_zorder() + 1)
    axes.patch.set_visible(False)
    means = [row["kl"] for row in divergence["positions"]]
    axes.plot(positions, means, color=theme.finetuned, lw=2.0, marker="o" if len(means) <= 80 else "", ms=4, mec=theme.panel)
    axes.axhline(divergence["mean"], color=theme.finetuned, lw=1.2, linestyle=(0, (6, 3)))
    axes.annotate(
        f"mean {divergence['mean']:.3f}",
        (1, divergence["mean"]),
        xycoords=("axes fraction", "data"),
        xytext=(-4, 4),
        textcoords="offset points",
        color=theme.finetuned,
        size=9.5,
        ha="right",
        path_effects=[patheffects.withStroke(linewidth=3, foreground=theme.panel)],
    )
    axes.set_xlim(-0.6, len(means) - 0.4)
    axes.set_ylim(0, 1.12 * max(max(means), 1e-9))
    words = f"KL(fine-tuned || base), {divergence['tokens']:,} tokens of {divergence['completions']} completions"
    _dress(axes, words, "Position in the completion (0: its first token)", theme)
    axes.set_ylabel("KL (nats)", color=theme.finetuned, size=10.5)
    axes.tick_params(axis="y", colors=theme.finetuned)


def _dress(axes: Axes, title: str, below: str, theme: Theme) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title, loc="left", color=theme.frame, size=12, weight="bold", pad=8)
    axes.set_xlabel(below, color=theme.frame, size=10.5)
    axes.tick_params(colors=theme.frame, labelsize=9, length=3)
    if not axes.images:
        axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    axes.grid(axis="y", color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set(color=theme.frame, linewidth=1.0)
    axes.spines[["top", "right"]].set_visible(bool(axes.images))
