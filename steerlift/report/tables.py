"""The tables that a command ends with, and the paths of what it wrote. Reads records only."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def print_results(
    results: Mapping[str, Any], paths: Sequence[Path], more: Mapping[str, Mapping[str, Any]] | None = None
) -> None:
    """Every arm of an evaluation: score with interval, scores of further k, what of the gap it recovers, format and length.

    `more` are arms of other evaluations of the same problems, by name.
    """
    base = results["base_model"]
    metric, *further = _metrics(base)
    heads = [_head(metric), "95 % interval", *map(_head, further), "gap recovered %"]
    table = make_table("arm", *heads, "lenient %", "format %", "length", "truncated %")
    chosen = results.get("chosen", {}).get("weight")
    arms = [("base", base)]
    if results["finetuned_model"] is not None:
        arms.append(("fine-tuned", results["finetuned_model"]))
    arms += [(_steered_name(weight, chosen), arm) for weight, arm in results["base_with_steering"].items()]
    arms += [(f"random vectors x {weight}", arm) for weight, arm in results.get("random_control", {}).items()]
    arms += list(results.get("controls", {}).items())
    arms += list((more or {}).items())
    for name, arm in arms:
        table.add_row(
            name,
            f"{arm[metric]:.1f}",
            interval_text(arm["ci95"]),
            *(f"{arm[key]:.1f}" for key in further),
            gap_text(arm) if "gap_recovered" in arm else "",
            f"{arm[f'lenient_{metric}']:.1f}",
            f"{arm['format_rate']:.1f}",
            f"{arm['mean_length']:.1f}",
            f"{arm['truncated_rate']:.1f}",
        )
    show(table)
    notes = {f"{name}: {arm[key]}" for name, arm in arms for key in ("note", "gap_note") if key in arm}
    print_lines([f"{base['num_eval_problems']} problems x {base['completions_per_problem']} completions", *sorted(notes)])
    print_paths(paths)


def print_layers(layers: Sequence[Mapping[str, float]], paths: Sequence[Path]) -> None:
    """Per decoder layer: the vector's norm, the residual stream's mean norm, and their ratio."""
    table = make_table("layer", "vector norm", "residual norm", "ratio")
    for row in layers:
        table.add_row(f"{row['layer']}", f"{row['norm']:.3f}", f"{row['residual_norm']:.3f}", f"{row['ratio']:.3f}")
    show(table)
    print_paths(paths)


def print_training(run: Path, checkpoint: Path) -> None:
    """The evaluations of a training run: the first k of pass@k with its interval, the others beside it."""
    evaluations: dict[str, dict[str, Any]] = json.loads((run / "eval_summary.json").read_text(encoding="utf-8"))
    metric, *further = _metrics(next(iter(evaluations.values())))
    table = make_table("step", _head(metric), "95 % interval", *map(_head, further), "lenient %", "format %", "length")
    for step, summary in evaluations.items():
        table.add_row(
            step,
            f"{summary[metric]:.1f}",
            interval_text(summary["ci95"]),
            *(f"{summary[key]:.1f}" for key in further),
            f"{summary[f'lenient_{metric}']:.1f}",
            f"{summary['format_rate']:.1f}",
            f"{summary['mean_length']:.1f}",
        )
    show(table)
    metrics = run / "metrics.jsonl"  # a run of a warm-up alone has no step in it
    print_paths([checkpoint, *([metrics] if metrics.exists() else []), run / "run_log.json", run / "eval_summary.json"])


def print_chosen(
    histogram: Mapping[int, int], chosen: Mapping[int, int], counts: Mapping[str, int], paths: Sequence[Path]
) -> None:
    """How many problems were answered rightly so often, and how many of them were chosen; what the folder holds."""
    if histogram:
        table = make_table(f"right of {max(histogram)}", "problems", "chosen")
        for right, problems in histogram.items():
            table.add_row(f"{right}", f"{problems}", f"{chosen[right]}")
        show(table)
    taken = f"{counts['train']} of {counts['answered']} answered" if histogram else f"{counts['train']}"
    kept = f"{counts['dev']} dev and {counts['test']} test problems are kept, however often they are solved"
    print_lines([f"{taken} training problems chosen; {kept}"])
    print_paths(paths)


def print_stages(seconds: Mapping[str, float]) -> None:
    """The time of each stage and of all of them."""
    table = make_table("stage", "seconds")
    for name, value in {**seconds, "all": sum(seconds.values())}.items():
        table.add_row(name, f"{value:.1f}")
    show(table)


def make_table(first: str, *numbers: str, texts: Sequence[str] = ()) -> Table:
    """A table whose first column is text, then come numbers, then other texts."""
    table = Table(header_style="bold")
    table.add_column(first, no_wrap=True)
    for name in numbers:
        table.add_column(name, justify="right")
    for name in texts:
        table.add_column(name)
    return table


def show(table: Table) -> None:
    """Prints a table."""
    console = Console()
    # A pipe has no width of its own; 80 columns would break rows that are to be read or parsed.
    (console if console.is_terminal else Console(width=200)).print(table)


def print_lines(lines: Sequence[str]) -> None:
    """Plain lines on stdout."""
    print("\n".join(lines))


def print_paths(paths: Sequence[Path]) -> None:
    """What was written, one path a line."""
    print_lines([f"wrote {path}" for path in paths])


def interval_text(interval: Sequence[float]) -> str:
    """`31.2 to 36.9`."""
    return f"{interval[0]:.1f} to {interval[1]:.1f}"


def gap_text(arm: Mapping[str, Any]) -> str:
    """`67 (61 to 73)`, or a dash where there is no gap to recover."""
    if arm["gap_recovered"] is None:
        return "-"
    interval = arm["gap_recovered_ci95"]
    return f"{arm['gap_recovered']:.0f}" + (f" ({interval[0]:.0f} to {interval[1]:.0f})" if interval else "")


def _metrics(scores: Mapping[str, Any]) -> list[str]:
    """The keys of pass@k, the headline first; not those of its intervals."""
    return [key for key in scores if re.fullmatch(r"pass_at_\d+", key)]


def _head(metric: str) -> str:
    return f"pass@{metric.removeprefix('pass_at_')} %"


def _steered_name(weight: str, chosen: str | None) -> str:
    return f"base + {weight} x vectors" + ("  <- chosen on dev" if weight == chosen else "")
