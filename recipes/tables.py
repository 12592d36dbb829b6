"""Writes the tables of docs/results.md and README.md from what recipes/keep.py kept under results/.

    python recipes/tables.py

A test compares them.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

from arms import BESIDE, DISTILLED
from as_command import as_command

from steerlift.records.errors import InputError
from steerlift.records.runs import read_json, replacing

REPOSITORY = Path(__file__).parent.parent
RESULTS = REPOSITORY / "results"
DOCS = REPOSITORY / "docs" / "results.md"
README = REPOSITORY / "README.md"
# A place for tables in the docs: its name stands in its first mark.
PLACE = re.compile(r"(<!-- recipes/tables\.py writes: (\S+) -->\n)(.*?)(\n<!-- end -->)", re.DOTALL)

MODELS = {"smollm2": "SmolLM2-135M-Instruct", "qwen": "Qwen2.5-Coder-0.5B-Instruct"}
TASKS = {
    "sums": "sums of two two-digit numbers",
    "hundreds": "sums of two three-digit numbers",
    "gsm8k": "GSM8K",
    "math": "MATH, levels 1 and 2",
}
# What the first table tells of every row.
_METHODS = (DISTILLED, BESIDE["results-learn-grpo"], BESIDE["results-increments"])


def tables(results: Path) -> dict[Path, dict[str, str]]:
    """The tables of the summaries in `results`, by their document and the names of their places in it.

    docs/results.md has all rows, and the tables of every task; the README a line for each task.
    """
    summaries = {path.parent.name: read_json(path) for path in sorted(results.glob("*/summary.json"))}
    by_task: dict[tuple[str, str], dict[str, dict[str, Any]]] = defaultdict(dict)
    for name, summary in summaries.items():
        model, task, seed = name.rsplit("-", 2)
        if "results" in summary["evaluations"]:
            by_task[model, task][seed] = summary
    models, tasks = list(MODELS), list(TASKS)
    by_task = dict(sorted(by_task.items(), key=lambda item: (models.index(item[0][0]), tasks.index(item[0][1]))))
    made = {"overview": _overview(by_task)}
    for (model, task), seeds in by_task.items():
        first = results / f"{model}-{task}-{next(iter(seeds))}"
        made[f"{model}-{task}"] = "\n\n".join([*_figures(first), *_task_tables(seeds)])
    return {DOCS: made, README: {"tasks": _tasks(by_task)}}


def filled(document: Path, made: dict[str, str]) -> str:
    """The text of the document with these tables in their places. Raises InputError when places and tables are not the same."""
    text = document.read_text(encoding="utf-8")
    places = [name for _, name, _, _ in PLACE.findall(text)]
    if sorted(places) != sorted(made):
        raise InputError(f"{document} has places for tables of {', '.join(places)}; there are tables of {', '.join(made)}")
    return PLACE.sub(lambda place: f"{place[1]}\n{made[place[2]]}\n{place[4]}", text)


def _overview(by_task: dict[tuple[str, str], dict[str, dict[str, Any]]]) -> str:
    rows = []
    for (model, task), seeds in by_task.items():
        for seed, summary in seeds.items():
            arms = summary["evaluations"]["results"]
            cpu = sum(user + system for _, user, system in summary["seconds"].values()) / 3600
            size = summary["bytes"]
            methods = " | ".join(_steered(arms.get(name, {})) for name in _METHODS)
            rows.append(
                f"| {MODELS[model]} | {TASKS[task]} | {_run_name(seed)} "
                f"| {_score(arms['base'])} | {_score(arms['fine-tuned'])} "
                f"| {methods} | {size['checkpoint'] / 1e6:,.0f} MB | {size['vectors'] / 1e3:,.0f} kB | {cpu:.1f} |"
            )
    head = (
        "| model | data | seed | base, pass@1 % | fine-tuned | learned by distillation: pass@1, gap recovered % "
        "| learned by GRPO alone | increments | checkpoint | vectors | CPU-hours |"
    )
    return "\n".join([head, _rule(head), *rows])


def _run_name(seed: str) -> str:
    """What a run's folder is called after model and task: its seed, and a number format that is not the recipe's own."""
    return seed.replace("_", ", ")


def _tasks(by_task: dict[tuple[str, str], dict[str, dict[str, Any]]]) -> str:
    """A line for each task: rounded scores, those of several seeds beside each other."""
    rows = []
    for (model, task), seeds in by_task.items():
        evaluated = [arms for summary in seeds.values() if DISTILLED in (arms := summary["evaluations"]["results"])]
        base, finetuned, distilled = (
            ", ".join(dict.fromkeys(f"{arms[name]['pass_at_1']:.1f}" for arms in evaluated))
            for name in ("base", "fine-tuned", DISTILLED)
        )
        gaps = [arms[DISTILLED] for arms in evaluated]
        gap = _gap(gaps[0]) if len(gaps) == 1 else ", ".join(f"{arm['gap_recovered']:.0f}" for arm in gaps)
        size = max(summary["bytes"]["vectors"] for summary in seeds.values())
        count = evaluated[0]["base"]["num_eval_problems"]
        rows.append(
            f"| {MODELS[model]}, {TASKS[task]}; {count} problems, {len(evaluated)} run{'s' * (len(evaluated) > 1)} "
            f"| {base} | {finetuned} | {distilled} | {gap} | {size / 1e3:,.0f} kB |"
        )
    head = "| model, task | base, pass@1 % | fine-tuned | base + distilled vectors | of the gain, % | vectors |"
    return "\n".join([head, _rule(head), *rows])


def _steered(arm: dict[str, Any]) -> str:
    return f"{_score(arm)}, **{arm['gap_recovered']:.0f}**" if arm else ""


def _figures(run: Path) -> Iterator[str]:
    """A run's Christmas figure: over weights, or that of the one weight that was evaluated."""
    for name in ("sweep.png", "results.png"):
        if (run / name).exists():
            yield f"![pass@1 against the steering weight](../results/{run.name}/{name})"
            return


def _task_tables(seeds: dict[str, dict[str, Any]]) -> Iterator[str]:
    evaluated = {seed: summary["evaluations"]["results"] for seed, summary in seeds.items()}
    formats = {seed.partition("_")[2] for seed in evaluated}
    if len(evaluated) > 1 and len(formats) == 1:
        yield from _tables_of_seeds(evaluated)
    else:
        for seed, arms in evaluated.items():
            yield _arms_table(f"models and vectors, seed {_run_name(seed)}", arms)
    first = next(iter(seeds.values()))
    for name, title in (("methods", "methods and controls"), ("sweep", "other weights of the learned vectors")):
        if name in first["evaluations"]:
            yield _arms_table(f"{title}, seed 0", first["evaluations"][name])
    for seed, summary in seeds.items():
        transfers = {name: arms for name, arms in summary["evaluations"].items() if name not in ("results", "methods", "sweep")}
        if transfers:
            yield _transfer_table(f"transfer, seed {_run_name(seed)}", transfers)
    if first["search"]:
        best = first["search"]
        gap = _gap(best["arms"][DISTILLED])
        yield (
            f"Search, seed 0: of {best['trials']} trials on {best['dev_problems']} development problems the best is "
            f"{best['params']}, {best['score']:.1f} there; on {best['arms']['base']['num_eval_problems']} test problems it "
            f"reaches {_score(best['arms'][DISTILLED])}{f', {gap} of the gap' if gap else ''}."
        )


def _tables_of_seeds(evaluated: dict[str, dict[str, Any]]) -> Iterator[str]:
    """The scores and the shares of the gap, a column for each seed."""
    names = list(dict.fromkeys(name for arms in evaluated.values() for name in arms))
    for title, cell, value in (
        ("pass@1 %, 95 % interval", _score, "pass_at_1"),
        ("gap recovered %, 95 % interval", _gap, "gap_recovered"),
    ):
        head = f"| {title} | {' | '.join(f'seed {seed}' for seed in evaluated)} | mean |"
        rows = []
        for name in names:
            arms = [arms.get(name, {}) for arms in evaluated.values()]
            values = [arm[value] for arm in arms if arm.get(value) is not None]
            if values:
                of = f" (of {len(values)})" if len(values) < len(arms) else ""
                average = f"{mean(values):.1f}{of}" if len(values) > 1 else ""
                rows.append(f"| {name} | {' | '.join(cell(arm) for arm in arms)} | {average} |")
        yield "\n".join([head, _rule(head), *rows])


def _transfer_table(title: str, evaluations: dict[str, dict[str, Any]]) -> str:
    """The learned vectors elsewhere; some evaluations have no fine-tuned model."""
    head = f"| {title} | base, pass@1 % | fine-tuned | steered | less base, points | gap recovered % |"
    rows = []
    for name, arms in evaluations.items():
        steered = arms[DISTILLED]
        rows.append(
            f"| {name.replace('-', ' ')} | {_score(arms['base'])} | {_score(arms['fine-tuned'])} "
            f"| {_score(steered)} | {_difference(steered)} | {_gap(steered)} |"
        )
    return "\n".join([head, _rule(head), *rows])


def _arms_table(title: str, arms: dict[str, Any]) -> str:
    """All arms of one evaluation: scores, and what of them is form."""
    count = arms["base"]["num_eval_problems"]
    head = f"| {title}, {count} problems | pass@1 % | gap recovered % | pass@1 %, leniently | format % | cut off % |"
    rows = [
        f"| {name} | {_score(arm)} | {_gap(arm)} | {arm['lenient_pass_at_1']:.1f} "
        f"| {arm['format_rate']:.1f} | {arm['truncated_rate']:.1f} |"
        for name, arm in arms.items()
    ]
    return "\n".join([head, _rule(head), *rows])


def _score(arm: dict[str, Any]) -> str:
    return f"{arm['pass_at_1']:.1f} ({arm['ci95'][0]:.1f} to {arm['ci95'][1]:.1f})" if arm else ""


def _difference(arm: dict[str, Any]) -> str:
    low, high = arm["difference_ci95"]
    return f"{arm['difference_from_base']:.1f} ({low:.1f} to {high:.1f})"


def _gap(arm: dict[str, Any]) -> str:
    # A share without an interval is one of a gap that may be none.
    if arm.get("gap_recovered") is None or not arm["gap_recovered_ci95"]:
        return ""
    low, high = arm["gap_recovered_ci95"]
    return f"{arm['gap_recovered']:.0f} ({low:.0f} to {high:.0f})"


def _rule(head: str) -> str:
    return "| " + " | ".join(["---"] * (head.count("|") - 1)) + " |"


def main() -> None:
    """Rewrites the tables of both documents."""
    for document, made in tables(RESULTS).items():
        text = filled(document, made)
        with replacing(document) as temporary:
            temporary.write_text(text, encoding="utf-8")
        print(f"wrote {document}")


if __name__ == "__main__":
    as_command(main)
