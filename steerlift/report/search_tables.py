"""The table that a search ends with: its best trials. Reads records only."""

from collections.abc import Mapping
from typing import Any

from steerlift.report.tables import make_table, print_lines, show

MOST_TRIALS = 10


def print_search(search: Mapping[str, Any]) -> None:
    """The best of the trials that were judged on all development problems, and how many were stopped on fewer."""
    trials = search["trials"]
    complete = sorted(
        (trial for trial in trials if trial["state"] == "complete"), key=lambda trial: (-trial["score"], trial["number"])
    )
    table = make_table("trial", f"dev pass@{search['settings']['pass_at_k']} %", *complete[0]["params"])
    for trial in complete[:MOST_TRIALS]:
        table.add_row(str(trial["number"]), f"{trial['score']:.1f}", *map(value_text, trial["params"].values()))
    show(table)
    baseline = search["baseline"]
    print_lines(
        [
            f"{len(trials)} trials: {len(complete)} judged on all {baseline['problems']} development problems, "
            f"{len(trials) - len(complete)} stopped earlier; the base alone scores {baseline['score']:.1f} % on them",
            *_warning(complete[0]["score"], baseline["score"]),
        ]
    )


def value_text(value: Any) -> str:  # noqa: ANN401 - a parameter's value is a number or a name
    """`0.731`, `12`, `completion_increments`."""
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _warning(best: float, baseline: float) -> list[str]:
    return [] if best > baseline else ["no trial was better than the base alone: these vectors do not help"]
