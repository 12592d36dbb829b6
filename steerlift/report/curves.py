"""The picture of a training run: small panels over one step axis, the evaluations the largest of them.

A noisy metric is drawn as a thin line through every step and a thick one, its running mean. As in `plots`, only Figure
objects are used, and the same run gives the same picture.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from itertools import count, islice
from typing import TYPE_CHECKING, Any

import numpy as np

from steerlift.report.christmas import decorate
from steerlift.report.themes import Theme
from steerlift.report.training_run import Evaluation, TrainingRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from numpy.typing import NDArray

# Inches: the figure grows with its rows of panels, header and margins stay.
WIDTH, ROW, HEADER, FOOTER, LEFT, RIGHT = 14.6, 2.15, 1.65, 0.62, 0.78, 0.62
COLUMNS = 3
# Left, depth of the lower edge below the top, width and height of the decorations; inches.
DECORATIONS = {"tree": (0.35, 1.2, 0.95, 1.1), "gift": (WIDTH - 1.35, 1.16, 0.95, 1.0)}
WIDEST_TITLE = WIDTH - 3.4
# Runs of fewer steps are drawn as they are, with a marker at every step.
FEWEST_STEPS_TO_SMOOTH = 10
# Of more lines the legend has no room for scores.
MOST_SCORES_IN_LEGEND = 3
# From so many times the median on, a step gets a logarithmic scale: it would press all the others flat.
SPIKE = 20.0


@dataclass(frozen=True)
class Series:
    """One line of a panel: the metric, what the legend calls it, what its values are multiplied by, whether it is smoothed."""

    metric: str
    name: str
    scale: float = 1.0
    noisy: bool = True


@dataclass(frozen=True)
class Panel:
    """Lines over one axis, and perhaps one over an axis of its own on the right. `spiky`: single steps may tower above all."""

    title: str
    series: tuple[Series, ...]
    right: Series | None = None
    spiky: bool = False

    def all_series(self) -> list[Series]:
        """All its lines."""
        return [*self.series, *([self.right] if self.right else [])]


PANELS = (
    Panel("Reward", (Series("reward", "reward"),)),
    Panel(
        "Accuracy (%)",
        (Series("accuracy", "strict", 100), Series("lenient_accuracy", "lenient", 100), Series("format_rate", "format", 100)),
    ),
    Panel("Length", (Series("mean_length", "tokens"),), Series("truncated_rate", "truncated % (right)", 100)),
    Panel("Entropy (nats)", (Series("entropy", "entropy"),)),
    Panel("Gradient norm", (Series("grad_norm", "gradient norm"),), spiky=True),
    Panel("Learning rate", (Series("lr", "learning rate", noisy=False),)),
    Panel(
        "Shares (%)",
        (Series("no_signal_rate", "no signal", 100), Series("clip_rate", "clipped", 100)),
        Series("kl", "KL (right)"),
    ),
    Panel(
        "Seconds",
        (Series("sampling_seconds", "sample"), Series("grading_seconds", "grade"), Series("update_seconds", "update")),
        spiky=True,
    ),
)


def draw_curves(run: TrainingRun, theme: Theme, title: str | None = None) -> Figure:
    """The figure of `run`: a header above the evaluations, if there are any, and every panel that has data."""
    from matplotlib.figure import Figure

    panels = [panel for panel in PANELS if any(run.has(series.metric) for series in panel.all_series())]
    places = _places(len(panels), bool(run.evaluations))
    rows = max([2 if run.evaluations else 1, *(row + 1 for row, _ in places)])
    height = HEADER + rows * ROW + FOOTER
    figure = Figure(figsize=(WIDTH, height), facecolor=theme.background)
    edges = {"left": LEFT / WIDTH, "right": 1 - RIGHT / WIDTH, "bottom": FOOTER / height, "top": 1 - HEADER / height}
    grid = figure.add_gridspec(rows, COLUMNS, wspace=0.29, hspace=0.42, **edges)
    window = running_window(len(run.steps))
    if run.evaluations:
        axes = figure.add_subplot(grid[:2, :2], label="evaluations", facecolor=theme.panel)
        _draw_evaluations(axes, run.evaluations, theme)
        _dress(axes, run, theme, lowest=(2, 0) not in places)
    for panel, (row, column) in zip(panels, places, strict=True):
        axes = figure.add_subplot(grid[row, column], label=panel.title, facecolor=theme.panel)
        _draw_panel(axes, panel, run, window, theme)
        _dress(axes, run, theme, lowest=(row + 1, column) not in places)
    _draw_header(figure, run, window, theme, title)
    if theme.decorated:
        _decorate(figure)
    return figure


def running_window(steps: int) -> int:
    """Steps that a running mean is taken over: odd, about a twentieth of the run; 0 for runs too short to smooth."""
    return max(5, 2 * (steps // 40) + 1) if steps >= FEWEST_STEPS_TO_SMOOTH else 0


def running_mean(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """The mean of the `window` values around each; of those that are there (not nan), so of fewer at the ends and in gaps."""
    there = ~np.isnan(values)
    sums = np.convolve(np.where(there, values, 0.0), np.ones(window), "same")
    counts = np.convolve(there.astype(int), np.ones(window, int), "same")
    means = np.full(len(values), np.nan)
    np.divide(sums, counts, out=means, where=counts > 0)
    return means


def _places(panels: int, beside_evaluations: bool) -> list[tuple[int, int]]:
    """Row and column of each panel, row by row; the evaluations take two rows of the first two columns."""
    cells = (divmod(cell, COLUMNS) for cell in count())
    free = (cell for cell in cells if not (beside_evaluations and max(cell) < 2))
    return list(islice(free, panels))


def _draw_evaluations(axes: Axes, evaluations: list[Evaluation], theme: Theme) -> None:
    colours = _colours(theme)
    ks = list(dict.fromkeys(k for evaluation in evaluations for k in evaluation.scores))
    for index, k in enumerate(ks):
        scores = {evaluation.step: evaluation.scores[k] for evaluation in evaluations if k in evaluation.scores}
        values = [score.percent for score in scores.values()]
        colour, on_top = colours[index % len(colours)], 5 - index / len(ks)
        for step, score in scores.items():
            if score.interval:
                # Thinner beyond the first: where they overlap, both stay visible.
                axes.vlines(step, *score.interval, colors=colour, lw=1.2 if index else 2.6, alpha=0.45, zorder=2)
        said = values[:1] + values[1:][-1:] if len(ks) <= MOST_SCORES_IN_LEGEND else []
        name = f"pass@{k}  {' → '.join(f'{value:.1f}' for value in said)}".rstrip()
        dashes = ("-", "--", ":")[index // len(colours) % 3]
        marker = "o" if len(scores) <= 60 else ""
        axes.plot(
            list(scores), values, dashes, color=colour, lw=2.4, marker=marker, ms=7, mec=theme.panel, label=name, zorder=on_top
        )
    low, high = axes.dataLim.intervaly
    room = max(0.1 * (high - low), 2.5)
    axes.set_ylim(max(low - room, -3), min(high + room, 103))
    axes.set_title("Evaluation: pass@k (%)", loc="left", color=theme.frame, size=13, weight="bold")
    _draw_legend(axes, list(axes.lines), size=9.5 if len(ks) <= MOST_SCORES_IN_LEGEND else 8.5)


def _draw_panel(axes: Axes, panel: Panel, run: TrainingRun, window: int, theme: Theme) -> None:
    colours = _colours(theme)
    lines = [
        _draw_series(axes, series, run, window, colour)
        for series, colour in zip(panel.series, colours, strict=False)
        if run.has(series.metric)
    ]
    title = panel.title + (_tame_spikes(axes, panel, run) if panel.spiky else "")
    _set_heights(axes)
    if not lines:
        # Nothing on the left: its numbers would be read as those of the line on the right.
        axes.set_yticks([])
    if panel.right and run.has(panel.right.metric):
        right = axes.twinx()
        right.set_label(f"{panel.title}, right")
        lines.append(_draw_series(right, panel.right, run, window, colours[2]))
        # Only the lower part of the height: a flat line on the left stays apart from a flat line on the right.
        _set_heights(right, share=0.6)
        right.tick_params(colors=colours[2], labelsize=8.5, length=3)
        right.spines[:].set_visible(False)
    axes.set_title(title, loc="left", color=theme.frame, size=11, weight="bold")
    if len(panel.all_series()) > 1:
        _draw_legend(axes, lines, size=8.5)


def _draw_series(axes: Axes, series: Series, run: TrainingRun, window: int, colour: str) -> Line2D:
    values = series.scale * np.array([np.nan if value is None else value for value in run.metrics[series.metric]])
    if not (window and series.noisy):
        (line,) = axes.plot(run.steps, values, color=colour, lw=2.0, marker="" if window else "o", label=series.name)
        return line
    # Where the thin lines are dense they would drown the means.
    axes.plot(run.steps, values, color=colour, lw=0.7, alpha=0.4 if len(values) <= 200 else 0.22, zorder=1.5)
    (line,) = axes.plot(run.steps, running_mean(values, window), color=colour, lw=2.0, label=series.name)
    return line


def _tame_spikes(axes: Axes, panel: Panel, run: TrainingRun) -> str:
    """A scale that is logarithmic above the median, where a line has a spike. Returns what the title is to say of it."""
    lines = [[value for value in run.metrics[series.metric] if value is not None] for series in panel.series]
    if not any(values and 0 < SPIKE * np.median(values) < max(values) for values in lines):
        return ""
    axes.set_yscale("symlog", linthresh=float(np.median([value for values in lines for value in values])))
    return " (symlog)"


def _set_heights(axes: Axes, share: float = 1.0) -> None:
    """From 0 to the highest value, which stands at this share of the height."""
    from matplotlib.ticker import MaxNLocator

    low, high = min(axes.dataLim.y0, 0.0), max(axes.dataLim.y1, 0.0)
    if low == high:
        high = 1.0
    if axes.get_yscale() == "linear":
        axes.set_ylim(low - 0.05 * (high - low) / share, low + 1.07 * (high - low) / share)
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        # No numbers beyond what is there: a share does not go above 100 %.
        axes.set_yticks([tick for tick in axes.get_yticks() if low <= tick <= 1.05 * high])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _draw_legend(axes: Axes, lines: list[Line2D], size: float) -> None:
    """Beside the title, above the panel."""
    short = {"handlelength": 1.1, "handletextpad": 0.5, "columnspacing": 1.0, "borderpad": 0.2, "borderaxespad": 0.2}
    axes.legend(
        handles=lines,
        loc="lower right",
        bbox_to_anchor=(1, 1),
        ncols=min(6, len(lines)),
        fontsize=size,
        frameon=False,
        labelcolor="linecolor",
        **short,
    )


def _dress(axes: Axes, run: TrainingRun, theme: Theme, lowest: bool) -> None:
    """The step axis, ticks and frame; the lowest panel of a column names the step axis."""
    from matplotlib.ticker import MaxNLocator

    steps = [*run.steps, *(evaluation.step for evaluation in run.evaluations)]
    room = max(0.5, 0.02 * (max(steps) - min(steps)))
    axes.set_xlim(min(steps) - room, max(steps) + room)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 2.5, 5, 10]))
    if lowest:
        axes.set_xlabel("Step", color=theme.frame, size=10)
    axes.tick_params(colors=theme.frame, labelsize=8.5, length=3)
    axes.grid(axis="y", color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set(color=theme.frame, linewidth=1.2)
    if not theme.decorated:
        axes.spines[["top", "right"]].set_visible(False)


def _draw_header(figure: Figure, run: TrainingRun, window: int, theme: Theme, title: str | None) -> None:
    from matplotlib.lines import Line2D

    height = figure.get_figheight()
    words = title if title is not None else f"Training run {run.name}"
    centred: dict[str, Any] = {"ha": "center", "va": "center"}
    # parse_math: a title may hold a dollar sign.
    heading = figure.text(0.5, 1 - 0.42 / height, words, color=theme.frame, size=19, weight="bold", parse_math=False, **centred)
    room = WIDEST_TITLE * figure.dpi
    if heading.get_window_extent().width > room:
        heading.set_text(textwrap.fill(words, max(60, len(words) // 2 + 5)))
        heading.set_fontsize(min(15.0, 19.0 * room / heading.get_window_extent().width))
    figure.text(0.5, 1 - 0.82 / height, _subtitle(run), color=theme.quiet, size=11, **centred)
    if window:
        thin = Line2D([], [], color=theme.quiet, lw=0.7, alpha=0.6, label="each step")
        thick = Line2D([], [], color=theme.quiet, lw=2.0, label=f"running mean of {window} steps")
        place = (0.5, 1 - 1.08 / height)
        figure.legend(handles=[thin, thick], loc="center", bbox_to_anchor=place, ncols=2, frameon=False, labelcolor=theme.quiet)


def _subtitle(run: TrainingRun) -> str:
    first, last = run.steps[0], run.steps[-1]
    words = f"step {first}" if first == last else f"steps {first} to {last}"
    if not run.evaluations:
        return words
    times = len(run.evaluations)
    words += ", evaluated once" if times == 1 else f", evaluated {times} times"
    problems = sorted({evaluation.problems for evaluation in run.evaluations if evaluation.problems is not None})
    if problems:
        words += f" on {' to '.join(map(str, problems[:1] + problems[1:][-1:]))} problem{'s' if problems != [1] else ''}"
    intervals = any(score.interval for evaluation in run.evaluations for score in evaluation.scores.values())
    return words + (", with 95 % intervals" if intervals else "")


def _decorate(figure: Figure) -> None:
    """The tree and the gift, made to fit this header."""
    decorate(figure)
    height = figure.get_figheight()
    for axes in figure.axes:
        if axes.get_label() in DECORATIONS:
            left, depth, width, tall = DECORATIONS[str(axes.get_label())]
            axes.set_position((left / WIDTH, 1 - depth / height, width / WIDTH, tall / height))


def _colours(theme: Theme) -> tuple[str, ...]:
    return theme.steered, theme.base, theme.finetuned, theme.control, theme.frame
