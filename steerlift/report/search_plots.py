"""The pictures of a search: its history, its parameters one by one and in pairs, and all of them as parallel coordinates.

As in `plots`, only Figure objects are used, and the same search gives the same pictures. Trials that were judged on all
development problems are coloured by their score; those stopped on fewer stay grey, since their scores do not compare.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from steerlift.records.runs import replacing
from steerlift.report.plots import DOTS_PER_INCH, percent
from steerlift.report.search_trials import Scale, Search, Trial, load_search
from steerlift.report.themes import PLAIN

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

# Of more parameters there is no room for every pair: each is drawn alone.
MOST_PAIRED = 7
MOST_COLUMNS = 4
STOPPED = "#b4b4b4"
# From pale to deep, so that on white the best stand out.
PALE_TO_DEEP = ("#d3e6f5", "#6cb0dc", "#0072b2", "#00264a")
DASHES = (0, (6, 3))
STEPS = [1, 2, 5, 10]


def plot_search(path: Path) -> list[Path]:
    """Draws search_history.png, search_slices.png and search_parallel.png beside the search.json at `path`.

    Raises MissingInputError when it is not there and InputError when it is no file of a search.
    """
    from matplotlib import style

    search = load_search(path)
    pictures: dict[str, Callable[[Search], Figure]] = {
        "search_history.png": draw_history,
        "search_slices.png": draw_slices,
        "search_parallel.png": draw_parallel,
    }
    with style.context("default"):
        for name, draw in pictures.items():
            with replacing(path.with_name(name)) as temporary:
                draw(search).savefig(temporary, format="png", dpi=DOTS_PER_INCH)
    return [path.with_name(name) for name in pictures]


def draw_history(search: Search) -> Figure:
    """Score by trial, the best so far, stopped trials, and the base."""
    figure = _figure(10.0, 5.6, search, f"Search history: best {percent(search.best.score)} in trial {search.best.number}")
    axes = figure.add_axes((0.075, 0.115, 0.9, 0.68), label="history")
    if search.stopped:
        at = [(trial.number, trial.score) for trial in search.stopped]
        axes.plot(*zip(*at, strict=True), "x", color=STOPPED, ms=7, mew=1.8, label="stopped on fewer problems", zorder=3)
    complete = sorted(search.complete, key=lambda trial: trial.number)
    numbers, scores = [trial.number for trial in complete], [trial.score for trial in complete]
    bests, last = np.maximum.accumulate(scores), search.trials[-1].number
    axes.step([*numbers, last], [*bests, bests[-1]], where="post", color=PLAIN.steered, lw=2.2, label="best so far", zorder=4)
    dots: dict[str, Any] = {"color": PLAIN.base, "markeredgecolor": PLAIN.panel, "zorder": 5}
    axes.plot(numbers, scores, "o", ms=9, mew=1.2, label="judged on all problems", **dots)
    _star(axes, search.best.number, search.best.score, "best")
    base = f"base alone {percent(search.baseline)}"
    axes.axhline(search.baseline, color=PLAIN.frame, lw=1.6, linestyle=DASHES, label=base, zorder=2)
    axes.set_xlabel("Trial", color=PLAIN.frame, size=12)
    axes.set_ylabel(_metric(search), color=PLAIN.frame, size=12)
    room = 0.02 * last + 0.5
    axes.set_xlim(-room, last + room)
    axes.locator_params(axis="x", integer=True)
    axes.grid(axis="y", color=PLAIN.grid, lw=0.9)
    _dress(axes, 11)
    place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.525, 0.875), "ncols": 5}
    figure.legend(**place, frameon=False, fontsize=10, columnspacing=1.6, handletextpad=0.6, markerscale=0.85)
    return figure


def draw_slices(search: Search) -> Figure:
    """A panel for every parameter against the score and, where there is room, one for every pair, coloured by the score."""
    scales = search.scales()
    paired = len(scales) <= MOST_PAIRED
    columns = len(scales) if paired else MOST_COLUMNS
    rows = -(-len(scales) // MOST_COLUMNS) if not paired else columns
    side = 6.0 if columns == 1 else max(1.9, min(3.4, 11 / columns))
    # Names of vectors stand aslant below and beside their panels.
    named = any(scale.names for scale in scales)
    left, right, top, bottom = 1.9 if named else 0.9, 1.4, 1.35, 1.6 if named else 0.75
    width, height = left + columns * side + right, top + rows * 0.85 * side + bottom
    figure = _figure(width, height, search, "Parameters and score" if len(scales) == 1 else "Parameters, pairs and score")
    edges = {"left": left / width, "right": 1 - right / width, "top": 1 - top / height, "bottom": bottom / height}
    grid = figure.add_gridspec(rows, columns, **edges, wspace=0.3, hspace=0.16 if paired else 0.9 if named else 0.5)
    colours = _colours(search)
    for index, scale in enumerate(scales):
        axes = figure.add_subplot(grid[index, index] if paired else grid[divmod(index, columns)], label=scale.name)
        _draw_slice(axes, search, scale, colours, labelled=not paired or index == rows - 1)
        for column, across in enumerate(scales[:index] if paired else ()):
            axes = figure.add_subplot(grid[index, column], label=f"{across.name} x {scale.name}")
            _draw_pair(axes, search, across, scale, colours, labelled=(index == rows - 1, column == 0))
    bar = figure.add_axes((1 - 0.95 * right / width, 1 - (top + 2.0) / height, 0.17 / width, 2.0 / height), label="colours")
    figure.colorbar(colours, cax=bar, extend="min")
    bar.set_title(_metric(search), size=9, color=PLAIN.frame, loc="left", pad=10)
    bar.tick_params(colors=PLAIN.frame, labelsize=9)
    _draw_legend(figure, search, lines=False)
    return figure


def draw_parallel(search: Search) -> Figure:
    """A line for every trial through all its parameters to its score."""
    scales = search.scales()
    width = max(8.5, 2.6 + 1.9 * len(scales))
    title = f"Every trial: best {percent(search.best.score)} in trial {search.best.number}"
    figure = _figure(width, 5.8, search, title)
    axes = figure.add_axes((1.5 / width, 0.06, 1 - 2.3 / width, 0.68), label="parallel")
    colours, places = _colours(search), range(len(scales) + 1)
    scores = [trial.score for trial in search.complete]
    score = Scale(_metric(search), (), min(scores) - 0.01, max(scores), whole=False)
    for trial in search.stopped:
        axes.plot(places[:-1], [scale.share(scale.at(trial)) for scale in scales], "x-", color=STOPPED, lw=0.8, ms=4, alpha=0.6)
    for trial in search.complete:
        heights = [*(scale.share(scale.at(trial)) for scale in scales), score.share(trial.score)]
        best = trial is search.best
        axes.plot(
            places, heights, color=PLAIN.steered if best else colours.to_rgba(np.asarray(trial.score)), lw=3.4 if best else 1.8
        )
    for place, scale in enumerate([*scales, score]):
        _draw_parallel_axis(axes, place, scale)
    _star(axes, len(scales), score.share(search.best.score), "")
    axes.set_xlim(-0.1, len(scales) + 0.1)
    axes.set_ylim(-0.03, 1.03)
    axes.set_axis_off()
    _draw_legend(figure, search, lines=True)
    return figure


def _draw_slice(axes: Axes, search: Search, scale: Scale, colours: ScalarMappable, labelled: bool) -> None:
    _scatter(axes, search, scale.at, lambda trial: trial.score, colours)
    axes.axhline(search.baseline, color=PLAIN.frame, lw=1.2, linestyle=DASHES, zorder=1)
    _set_range(axes, scale, "x", labelled)
    axes.set_ylabel(_metric(search), color=PLAIN.frame, size=10, labelpad=2)
    axes.grid(axis="y", color=PLAIN.grid, lw=0.8)
    _dress(axes, 9)


def _draw_pair(
    axes: Axes, search: Search, across: Scale, up: Scale, colours: ScalarMappable, labelled: tuple[bool, bool]
) -> None:
    _scatter(axes, search, across.at, up.at, colours)
    _set_range(axes, across, "x", labelled[0])
    _set_range(axes, up, "y", labelled[1])
    _dress(axes, 9)


def _scatter(
    axes: Axes, search: Search, x: Callable[[Trial], float], y: Callable[[Trial], float], colours: ScalarMappable
) -> None:
    for trial in search.stopped:
        axes.plot(x(trial), y(trial), "x", color=STOPPED, ms=5, mew=1.3, zorder=2)
    for trial in search.complete:
        axes.plot(
            x(trial), y(trial), "o", color=colours.to_rgba(np.asarray(trial.score)), ms=7, mew=0.6, mec=PLAIN.frame, zorder=3
        )
    _star(axes, x(search.best), y(search.best), "")


def _set_range(axes: Axes, scale: Scale, which: Literal["x", "y"], labelled: bool) -> None:
    """The range of one axis; its ticks and name only where they are not those of the panel beside or below it."""
    from matplotlib.ticker import FixedLocator, MaxNLocator

    room = 0.0 if scale.whole else 0.04 * (scale.high - scale.low)
    (axes.set_xlim if which == "x" else axes.set_ylim)(scale.low - room, scale.high + room)
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(
        FixedLocator(range(len(scale.names))) if scale.names else MaxNLocator(4, steps=STEPS, integer=scale.whole)
    )
    if not labelled:
        axis.set_ticklabels([])
        return
    if scale.names:
        aslant: dict[str, Any] = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if which == "x" else {}
        axis.set_ticklabels([_words(name) for name in scale.names], **aslant)
    axis.set_label_text(scale.name, color=PLAIN.frame, size=10)


def _draw_parallel_axis(axes: Axes, place: int, scale: Scale) -> None:
    from matplotlib import patheffects
    from matplotlib.ticker import MaxNLocator

    names = {float(index): _words(name, "\n") for index, name in enumerate(scale.names)}
    values = names or MaxNLocator(5, steps=STEPS, integer=scale.whole).tick_values(scale.low, scale.high)
    axes.axvline(place, color=PLAIN.frame, lw=1.4, zorder=4)
    beside: dict[str, Any] = {"xytext": (-8, 0), "textcoords": "offset points", "ha": "right", "va": "center", "size": 9}
    beside["path_effects"] = [patheffects.withStroke(linewidth=3, foreground=PLAIN.panel)]
    for value in values:
        if scale.low <= value <= scale.high:
            axes.plot(place, scale.share(value), "_", color=PLAIN.frame, ms=8, zorder=4)
            text = names.get(value, f"{value:g}")
            axes.annotate(text, (place, scale.share(value)), color=PLAIN.frame, zorder=6, **beside)
    above: dict[str, Any] = {"xytext": (0, 8), "textcoords": "offset points", "ha": "center", "weight": "bold", "size": 10}
    axes.annotate(scale.name, (place, 1.03), color=PLAIN.frame, **above)


def _draw_legend(figure: Figure, search: Search, lines: bool) -> None:
    """What dots, or lines through all parameters, mean; below the title."""
    from matplotlib.lines import Line2D

    looks: dict[str, dict[str, Any]] = {
        "stopped on fewer problems": {"color": STOPPED, "marker": "x", "mew": 1.5, "lw": 0.8},
        "judged on all problems": {"color": PALE_TO_DEEP[2], "marker": "" if lines else "o", "lw": 1.8},
        "best": {"color": PLAIN.steered, "marker": "*", "mfc": PLAIN.chosen, "ms": 14, "mew": 1.4, "lw": 3.4},
    }
    handles = [Line2D([], [], label=name, ls="-" if lines else "none", **look) for name, look in looks.items()]
    if not lines:
        base = f"base alone {percent(search.baseline)}"
        handles.append(Line2D([], [], label=base, color=PLAIN.frame, linestyle=DASHES, lw=1.3))
    place: dict[str, Any] = {"loc": "center", "bbox_to_anchor": (0.5, 1 - 0.92 / figure.get_figheight())}
    figure.legend(handles=handles, **place, ncols=4, frameon=False, fontsize=9, columnspacing=1.4, handletextpad=0.6)


def _colours(search: Search) -> ScalarMappable:
    """Colours that tell the better trials apart: whatever is below the lowest fifth is as pale as it."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    values = [trial.score for trial in search.complete]
    low, high = float(np.quantile(values, 0.2)), max(values)
    return ScalarMappable(
        Normalize(low if low < high else high - 1, high), LinearSegmentedColormap.from_list("score", PALE_TO_DEEP)
    )


def _figure(width: float, height: float, search: Search, title: str) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor=PLAIN.background)
    centred: dict[str, Any] = {"ha": "center", "va": "center"}
    figure.text(0.5, 1 - 0.32 / height, title, size=16, weight="bold", color=PLAIN.frame, **centred)
    words = (
        f"{len(search.trials)} trials: {len(search.complete)} on all {search.problems} development problems, "
        f"{len(search.stopped)} stopped on fewer"
    )
    figure.text(0.5, 1 - 0.62 / height, words, size=10, color=PLAIN.quiet, **centred)
    return figure


def _metric(search: Search) -> str:
    return f"pass@{search.k} (%)"


def _words(name: str, between: str = " ") -> str:
    """`completion_mean_difference` as words."""
    return name.replace("_", between)


def _star(axes: Axes, x: float, y: float, label: str) -> None:
    line: dict[str, Any] = {"color": PLAIN.chosen, "markeredgecolor": PLAIN.steered, "zorder": 7, "clip_on": False}
    axes.plot([x], [y], "*", ms=17, mew=1.6, label=label or "_best", linestyle="none", **line)


def _dress(axes: Axes, size: float) -> None:
    axes.tick_params(colors=PLAIN.frame, labelsize=size, length=4)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    for spine in axes.spines.values():
        spine.set(color=PLAIN.frame, linewidth=1.4)
