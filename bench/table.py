"""What was measured as rows and sections, and docs/performance.md written from them."""

import os
import platform
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Literal

import torch

from bench.measure import QUIET, Times
from steerlift.records.provenance import provenance

Quotient = Literal["ours / alternative", "alternative / ours"]
Direction = Literal["at least", "at most"]


@dataclass(frozen=True)
class Aim:
    """The ratio that was aimed at: at least, or at most."""

    bound: float
    direction: Direction = "at least"

    def judge(self, ratio: float) -> str:
        """The aim in words, and whether `ratio` meets it."""
        met = ratio >= self.bound if self.direction == "at least" else ratio <= self.bound
        return f"{self.direction} {self.bound:g}: {'met' if met else 'MISSED'}"


@dataclass(frozen=True)
class Row:
    """One line of the table: a value per repetition of ours and of the alternative, the i-th measured right after another.

    `ratios` and `cpu_ratios` say how many times better ours is, or, where the alternative does less than ours (a bare
    forward pass), how many times its time ours takes (`is_cost`).
    """

    measured: str
    unit: str
    alternative_name: str
    ours: tuple[float, ...]
    alternative: tuple[float, ...]
    ratios: tuple[float, ...]
    cpu_ratios: tuple[float, ...] = ()
    is_cost: bool = False
    aim: Aim | None = None

    def cells(self) -> list[str]:
        """The cells of the table's line, in the order of HEADINGS."""
        cost = " of its time" if self.is_cost else ""
        return [
            self.measured,
            f"{spread(self.ours)} {self.unit}",
            f"{self.alternative_name}: {spread(self.alternative)} {self.unit}",
            f"**{spread(self.ratios, 'x')}**{cost}",
            spread(self.cpu_ratios, "x") if self.cpu_ratios else "-",
            str(len(self.ratios)),
            self.aim.judge(median(self.ratios)) if self.aim else "-",
        ]


HEADINGS = ("measured", "ours", "alternative", "ratio", "in CPU seconds", "turns", "aim")


@dataclass(frozen=True)
class Section:
    """One benchmark: paragraphs on what was measured, and how it was made sure that both sides give the same result.

    `rows` are its lines of the table of all benchmarks; `table` is one of its own, the headings first.
    """

    title: str
    text: Sequence[str]
    agreement: str
    rows: Sequence[Row] = ()
    table: Sequence[Sequence[str]] = ()


def time_row(measured: str, ours: Times, name: str, alternative: Times, aim: Aim | None = None, is_cost: bool = False) -> Row:
    """Seconds of the same work; ratios are alternative / ours, or ours / alternative for a cost."""
    quotient: Quotient = "ours / alternative" if is_cost else "alternative / ours"
    ratios, cpu_ratios = _ratios(ours.wall, alternative.wall, quotient), _ratios(ours.cpu, alternative.cpu, quotient)
    return Row(measured, "s", name, ours.wall, alternative.wall, ratios, cpu_ratios, is_cost, aim)


def rate_row(measured: str, unit: str, ours: Times, name: str, alternative: Times, aim: Aim | None = None) -> Row:
    """Work per second; ratios are ours / alternative."""
    rates, their_rates = ours.per_second(), alternative.per_second()
    ratios = _ratios(rates, their_rates, "ours / alternative")
    cpu_ratios = _ratios(ours.per_cpu_second(), alternative.per_cpu_second(), "ours / alternative")
    return Row(measured, unit, name, rates, their_rates, ratios, cpu_ratios, aim=aim)


def memory_row(measured: str, ours: float, name: str, alternative: float, aim: Aim | None = None) -> Row:
    """Peak MiB, measured once each; the ratio is alternative / ours."""
    ratios = _ratios((ours,), (alternative,), "alternative / ours")
    return Row(measured, "MiB", name, (ours,), (alternative,), ratios, aim=aim)


def _ratios(ours: Sequence[float], alternative: Sequence[float], quotient: Quotient) -> tuple[float, ...]:
    pairs = zip(ours, alternative, strict=True)
    return tuple(our / their if quotient == "ours / alternative" else their / our for our, their in pairs)


def spread(values: Sequence[float], suffix: str = "") -> str:
    """Median and, of several values, the least and the largest."""
    if len(values) == 1:
        return _number(values[0]) + suffix
    return f"{_number(median(values))}{suffix} ({_number(min(values))} – {_number(max(values))})"


def _number(value: float) -> str:
    """About three significant digits, and no exponent."""
    decimals = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:,.{decimals}f}"


_HOW_TO_READ = (
    "Written by `{command}`; do not edit. Ours against a named alternative that does the same work, both measured in one "
    "run of one process, in turns (ours, alternative, ours, alternative, ...), after both have run once to warm up. A cell "
    "shows the median and, in brackets, the least and the largest of all turns. `ratio` is taken turn by turn and says how "
    "many times better ours is in wall time (seconds and MiB: alternative / ours; tokens per second: ours / alternative) or, "
    "against a bare forward pass, which does less than ours, how many times its time ours takes; `turns` says how many there "
    "were, and an aim is judged by the median. All of it ran on the CPU in float32; rows that need a GPU are not here."
)
_PEAK_MEMORY = (
    "Peak memory is that of a fresh process above what it had used once everything was loaded and prepared, with malloc told "
    "to give freed blocks back at once; it is measured once."
)


def document(
    sections: Sequence[Section], seed: int, command: str, busy: Mapping[str, float], title: str = "Performance"
) -> str:
    """The whole of a document. `busy` says how many cores other work kept busy just before each section."""
    rows = [row.cells() for section in sections for row in section.rows]
    has_memory = any("memory" in row[0] for row in rows)
    lines = [
        f"# {title}",
        "",
        *_paragraphs(_HOW_TO_READ.format(command=command), *([_PEAK_MEMORY] if has_memory else [])),
        *_table([HEADINGS, *rows] if rows else []),
    ]
    for section in sections:
        lines += [f"## {section.title}", "", *_table(section.table)]
        lines += _paragraphs(*section.text, f"Same results: {section.agreement}")
    return "\n".join([*lines, "## Machine and versions", "", *_machine(seed, command, busy)]) + "\n"


def _paragraphs(*texts: str) -> list[str]:
    """Wrapped lines, an empty one after each text."""
    return [line for text in texts for line in (*textwrap.wrap(text, 120, break_on_hyphens=False), "")]


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Markdown lines, an empty one after them; none for no rows. The first row are the headings."""
    if not rows:
        return []
    headings, *lines = rows
    return [*(f"| {' | '.join(cells)} |" for cells in (headings, ["---"] * len(headings), *lines)), ""]


def _machine(seed: int, command: str, busy: Mapping[str, float]) -> list[str]:
    origin = provenance(seed=seed)
    names = {**origin["libraries"], "trl": version("trl"), "steerlift": origin["steerlift"], "Python": origin["python"]}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quiet = all(count <= QUIET for count in busy.values())
    looks = ", ".join(f"{name} {count:.2f}" for name, count in busy.items())
    threads = torch.get_num_threads()
    return [
        f"- machine: {_cpu_model()}, {cores} cores, torch threads of a process: {threads} ({origin['machine']})",
        f"- cores busy with other work in the second before each section: {looks}; the machine was "
        + ("quiet" if quiet else f"NOT quiet (more than {QUIET}): measure again"),
        f"- date: {origin['date']}",
        f"- seed: {seed}",
        f"- versions: {', '.join(f'{name} {found}' for name, found in names.items())}",
        f"- command: `{command}`",
    ]


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
