"""The picture of an evaluation: pass@k against the steering weight, beside the base and the fine-tuned model.

Only Figure objects are used, never pyplot, and the defaults of matplotlib whatever the user has configured, so the same
results give the same picture, byte for byte, everywhere that the same matplotlib is installed.
"""

from __future__ import annotations

import textwrap
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerlift.records.errors import InputError
from steerlift.records.runs import replacing
from steerlift.report.christmas import decorate
from steerlift.report.config import PlotConfig
from steerlift.report.curves import draw_curves
from steerlift.report.results import Arm, Results, load_results
from steerlift.report.themes import THEMES, Theme
from steerlift.report.training_run import load_training_run

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend
    from matplotlib.text import Text
    from numpy.typing import NDArray

# What would put the date of drawing into the file, by the file's ending.
DATELESS: dict[str, dict[str, None]] = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}

FIGURE_INCHES = (10.0, 6.5)
DOTS_PER_INCH = 160
PANEL_PLACE = (0.078, 0.105, 0.898, 0.655)
# Header lines between the decorations: heights and the width left for them, as fractions of the figure.
TITLE_Y, SUBTITLE_Y, LEGEND_Y, HEADER_WIDTH = 0.948, 0.893, 0.866, 0.71
MOST_LABELLED_WEIGHTS = 12
SMALLEST_FONT = 6.0


def plot(config: PlotConfig) -> Path:
    """Draws the results or the training run into `config.picture_path()` and returns that path.

    Raises InputError for an unknown ending or an input that cannot be drawn, MissingInputError when it is not there.
    """
    from matplotlib import style

    path = config.picture_path()
    ending = path.suffix.lower()
    if ending not in DATELESS:
        raise InputError(f"{path}: unknown ending {ending!r}; expected one of {', '.join(DATELESS)}")
    # The salt makes the ids in an SVG, otherwise random, the same every time.
    with style.context(["default", {"svg.hashsalt": "steerlift"}]):
        figure = _draw_input(config)
        with replacing(path) as temporary:
            figure.savefig(temporary, format=ending[1:], dpi=DOTS_PER_INCH, metadata=DATELESS[ending])
    return path


def _draw_input(config: PlotConfig) -> Figure:
    theme = THEMES[config.theme]
    if config.run_dir is not None:
        return draw_curves(load_training_run(config.run_dir), theme, config.title)
    assert config.results_path is not None  # PlotConfig takes one of the two
    return draw(load_results(config.results_path), theme, config.title)


def draw(results: Results, theme: Theme, title: str | None = None) -> Figure:
    """The figure of `results`: a header (title, number of problems, legend) above one panel."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=FIGURE_INCHES, facecolor=theme.background)
    axes = figure.add_axes(PANEL_PLACE, label="panel", facecolor=theme.panel)
    _draw_model(axes, results.base, "Base", theme.base)
    if results.finetuned is not None:
        _draw_model(axes, results.finetuned, "Fine-tuned", theme.finetuned)
    _draw_steered(axes, results, theme)
    if results.control:
        _draw_control(axes, results.control, theme)
    _label_axes(axes, results, theme)
    _draw_header(figure, axes, results, theme, title)
    if theme.decorated:
        decorate(figure)
    return figure


def percent(value: float) -> str:
    """A score in as many decimals, two at most, as it has: 33.75 %, 47.5 %, 56 %."""
    return f"{value:.2f}".rstrip("0").rstrip(".") + " %"


def _draw_model(axes: Axes, arm: Arm, name: str, colour: str) -> None:
    axes.axhline(arm.score, color=colour, linewidth=2.2, linestyle=(0, (6, 3)), label=f"{name} {percent(arm.score)}", zorder=3)
    if arm.interval:
        axes.axhspan(*arm.interval, facecolor=colour, alpha=0.13, linewidth=0, zorder=1)


def _draw_control(axes: Axes, arms: dict[float, Arm], theme: Theme) -> None:
    best = max(arms.values(), key=lambda arm: arm.score)
    name = "Random vector" if len(arms) == 1 else "Random vector, best"
    axes.plot(
        list(arms),
        [arm.score for arm in arms.values()],
        color=theme.control,
        linewidth=1.4,
        linestyle=":",
        marker="D",
        markersize=7 if len(arms) == 1 else 4,
        label=f"{name} {percent(best.score)}",
        zorder=4,
    )
    if len(arms) == 1:
        _draw_whiskers(axes, arms, theme.control)


def _draw_steered(axes: Axes, results: Results, theme: Theme) -> None:
    weights = list(results.steered)
    intervals = [arm.interval for arm in results.steered.values() if arm.interval]
    if len(intervals) == len(weights) > 1:
        low, high = zip(*intervals, strict=True)
        axes.fill_between(weights, low, high, facecolor=theme.steered, alpha=0.17, linewidth=0, zorder=2)
        for bounds in (low, high):
            axes.plot(weights, bounds, color=theme.steered, alpha=0.35, linewidth=1.0, zorder=2)
    else:
        _draw_whiskers(axes, results.steered, theme.steered)
    line: dict[str, Any] = {"color": theme.steered, "markeredgecolor": theme.panel, "label": "Base + steering", "zorder": 6}
    axes.plot(weights, [arm.score for arm in results.steered.values()], "o-", lw=2.6, ms=9, mew=1.4, **line)
    if results.chosen is not None:
        star: dict[str, Any] = {"color": theme.chosen, "markeredgecolor": theme.steered, "zorder": 7}
        score = results.steered[results.chosen].score
        axes.plot([results.chosen], [score], "*", ms=20, mew=1.6, label=f"Chosen weight {results.chosen:g}", **star)


def _draw_whiskers(axes: Axes, arms: dict[float, Arm], colour: str) -> None:
    for weight, arm in arms.items():
        if arm.interval:
            low, high = arm.interval
            axes.vlines(weight, low, high, colors=colour, linewidth=2.2, alpha=0.45, zorder=2)


def _label_axes(axes: Axes, results: Results, theme: Theme) -> None:
    weights = list(results.steered)
    _set_limits(axes, results)
    if _ticks_fit(weights):
        axes.set_xticks(weights, [f"{weight:g}" for weight in weights])
    _label_points(axes, results, theme)
    axes.set_xlabel("Steering weight", color=theme.frame, size=12, labelpad=6)
    axes.set_ylabel(f"pass@{results.k} (%)", color=theme.frame, size=12)
    axes.tick_params(colors=theme.frame, labelsize=11, length=5, width=1.4)
    axes.grid(axis="y", color=theme.grid, linewidth=0.9)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set(color=theme.frame, linewidth=1.8)
    if not theme.decorated:
        axes.spines[["top", "right"]].set_visible(False)


def _label_points(axes: Axes, results: Results, theme: Theme) -> None:
    """Writes the score at every steered point, beside the line: above it, at a valley below it."""
    from matplotlib import patheffects

    weights = list(results.steered)
    everywhere = len(weights) <= MOST_LABELLED_WEIGHTS and _ticks_fit(weights)
    low, high = axes.get_ylim()
    at = axes.transData.transform([(weight, arm.score) for weight, arm in results.steered.items()])
    for index, (weight, arm) in enumerate(results.steered.items()):
        if not everywhere and weight != results.chosen:
            continue
        # Slopes on the paper, per unit to the right: what comes in from the left and what goes out to the right.
        left, right = (_slope(at, step) for step in ((index - 1, index), (index, index + 1)))
        valley = left < -0.2 and right > 0.2 and arm.score - low > 0.1 * (high - low)
        away = 15 if weight == results.chosen else 10
        axes.annotate(
            percent(arm.score).removesuffix(" %"),
            (weight, arm.score),
            xytext=(0 if valley else -14 * max(-1.0, min(1.0, left + right)), -away if valley else away),
            textcoords="offset points",
            ha="center",
            va="top" if valley else "bottom",
            color=theme.steered,
            weight="bold",
            path_effects=[patheffects.withStroke(linewidth=3, foreground=theme.panel)],
            zorder=8,
        )


def _slope(points: NDArray[np.float64], step: tuple[int, int]) -> float:
    """Height over width from one point to the next; 0 beyond the ends of the line."""
    start, end = step
    if start < 0 or end >= len(points):
        return 0.0
    width, height = points[end] - points[start]
    return float(height / width)


def _ticks_fit(weights: list[float]) -> bool:
    """Whether a tick at every weight leaves room for its number; otherwise matplotlib's own ticks are clearer."""
    if len(weights) == 1:
        return True
    nearest = min(after - before for before, after in pairwise(weights))
    return nearest / (weights[-1] - weights[0]) >= 0.05


def _set_limits(axes: Axes, results: Results) -> None:
    """Room for everything drawn, the numbers at the points included, and little beyond 0 and 100 %."""
    values = [bound for arm in results.arms() for bound in (arm.score, *(arm.interval or ()))]
    spread = max(values) - min(values)
    room = max(0.1 * spread, 5 - spread / 2)
    low = max(min(values) - room, -3.0)
    highest = max(arm.score for arm in results.steered.values())
    axes.set_ylim(low, max(min(max(values) + room, 103.0), highest + 0.11 * (highest - low)))
    axes.set_yticks([tick for tick in axes.get_yticks() if max(low, 0) <= tick <= min(axes.get_ylim()[1], 100)])
    weights = [*results.steered, *results.control]
    span = max(weights) - min(weights)
    room = 0.06 * span if span else max(0.5 * abs(weights[0]), 0.5)
    axes.set_xlim(min(weights) - room, max(weights) + room)


def _draw_header(figure: Figure, axes: Axes, results: Results, theme: Theme, title: str | None) -> None:
    words = title if title is not None else f"Steering vectors against fine-tuning: pass@{results.k}"
    # parse_math: a title may hold a dollar sign.
    heading = figure.text(
        0.5, TITLE_Y, words, color=theme.frame, size=18, weight="bold", ha="center", va="center", parse_math=False
    )
    room = HEADER_WIDTH * figure.bbox.width
    if heading.get_window_extent().width > room:
        heading.set_text(textwrap.fill(words, max(50, len(words) // 2 + 5)))
    _shrink(heading, [heading], room)
    figure.text(0.5, SUBTITLE_Y, _subtitle(results), color=theme.quiet, size=11, ha="center", va="center")
    handles, labels = axes.get_legend_handles_labels()
    columns = len(handles) if len(handles) <= 3 else (len(handles) + 1) // 2
    legend = figure.legend(
        handles,
        labels,
        loc="upper center",
        bbox_to_anchor=(0.5, LEGEND_Y),
        ncols=columns,
        fontsize=11,
        frameon=False,
        labelcolor=theme.frame,
        # Two dashes and the gap between them.
        handlelength=3.0,
        columnspacing=1.8,
        markerscale=0.85,
    )
    _shrink(legend, legend.get_texts(), room)


def _shrink(artist: Text | Legend, texts: list[Text], room: float) -> None:
    """Makes the texts of `artist` smaller until it is at most `room` pixels wide."""
    size = float(texts[0].get_fontsize())
    while artist.get_window_extent().width > room and size > SMALLEST_FONT:
        size -= 0.5
        for text in texts:
            text.set_fontsize(size)


def _subtitle(results: Results) -> str:
    counts = results.problem_counts()
    if not counts:
        problems = "number of problems not in the file"
    elif len(counts) == 1:
        problems = f"{counts[0]} problem{'s' if counts[0] > 1 else ''}"
    else:
        problems = f"{counts[0]} to {counts[-1]} problems"
    return problems + (", with 95 % intervals" if any(arm.interval for arm in results.arms()) else "")
