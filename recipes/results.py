"""Keeps what is small of finished recipes under results/, and writes their tables into docs/results.md and README.md.

    python recipes/results.py keep runs/smollm2-sums-0 runs/smollm2-sums-1      # copies summaries, vectors, figures
    python recipes/results.py add runs/smollm2-sums-0/temperature-0.json        # one evaluation to a run that is kept already
    python recipes/results.py tables                                            # rewrites the tables in the docs

A test compares the tables in the docs with those made of results/.
"""

import json
import re
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, median
from typing import Any

from steerlift.records.runs import read_json, replacing

REPOSITORY = Path(__file__).parent.parent
RESULTS = REPOSITORY / "results"
DOCS = REPOSITORY / "docs" / "results.md"
README = REPOSITORY / "README.md"
# A place for tables in the docs: its name stands in its first mark.
PLACE = re.compile(r"(<!-- recipes/results\.py writes: (\S+) -->\n)(.*?)(\n<!-- end -->)", re.DOTALL)

MODELS = {"smollm2": "SmolLM2-135M-Instruct", "qwen": "Qwen2.5-Coder-0.5B-Instruct"}
TASKS = {
    "sums": "sums of two two-digit numbers",
    "hundreds": "sums of two three-digit numbers",
    "gsm8k": "GSM8K",
    "math": "MATH, levels 1 and 2",
}
# The arms of an evaluation by the file that their vectors come from.
ARMS = {
    "weight-of-increments/best": "increments of the completion mean, weight chosen on dev problems",
    "weight-of-completion-mean/best": "completion mean, weight chosen on dev problems",
    "weight-of-prompt-mean/best": "prompt mean, weight chosen on dev problems",
    "random_control": "random directions, norms of the learned ones",
}
_TRAININGS = ("grpo", "distill", "learn-grpo", "longer")
_LEARNED = ("distill/vectors.safetensors", "learn-grpo/vectors.safetensors")
DISTILLED = "learned by distillation"
# The vectors of a search by the names of their files.
_SEARCHED = {"vectors": "the vectors learned by distillation", "increments": "the increments"}
# Evaluations of other vectors of the run, which stand in one table with those of the learned ones.
BESIDE = {
    "results-increments": ARMS["weight-of-increments/best"],
    # Made by an earlier recipe, which chose no weight.
    "results-increments-once": "increments of the completion mean, weight 1",
    "results-learn-grpo": "learned by GRPO alone",
}
# An evaluation of the two models before there were vectors.
ANSWERS = "answers"
# An evaluation of the same vectors beside a fine-tuned model that had as many steps as they: an arm, and a share of its gain.
LONGER = "results-longer"
# What the first table tells of every row.
_METHODS = (DISTILLED, BESIDE["results-learn-grpo"], BESIDE["results-increments"])
SCORES = (
    "pass_at_1", "ci95", "difference_from_base", "difference_ci95", "gap_recovered", "gap_recovered_ci95", "lenient_pass_at_1",
    "format_rate", "truncated_rate", "mean_length", "num_eval_problems", "completions_per_problem", "weight",
)  # fmt: skip


def keep(run: Path, target: Path) -> None:
    """Copies the vectors and figures of a run and writes summary.json: all scores, sizes and seconds, no completions.

    A run that is not at its end keeps what it has.
    """
    target.mkdir(parents=True, exist_ok=True)
    evaluations = {path.stem: read_json(path) for path in sorted(run.glob("*.json")) if "base_model" in read_json(path)}
    search = run / "search"
    trainings = [name for name in _TRAININGS if (run / name / "eval_summary.json").exists()]
    scores = {name: _scores(results) for name, results in evaluations.items()}
    if ANSWERS in scores:
        models = scores.pop(ANSWERS)
        scores.setdefault("results", models)
    for name in [name for name in scores if name in BESIDE]:  # the same problems, and the same base and fine-tuned answers
        arms = scores.pop(name)
        both = scores.setdefault("results", {model: arms[model] for model in ("base", "fine-tuned")})
        both[BESIDE[name]] = arms[DISTILLED]
    if LONGER in scores:
        longer = scores.pop(LONGER)
        steps = evaluations[LONGER]["settings"]["finetuned_checkpoint"].rpartition("_")[2]
        share = {key: value for key, value in longer[DISTILLED].items() if key.startswith("gap_recovered")}
        scores["results"][f"fine-tuned for {steps} steps"] = longer["fine-tuned"]
        scores["results"][f"{BESIDE['results-learn-grpo']}, of the gain of {steps} steps"] = share
    summary = {
        "evaluations": scores,
        "search": _search(search) if (search / "results.json").exists() else None,
        "choose": _chosen(run / "chosen" / "choose.json"),
        "dev": {name: _dev_scores(run / name) for name in trainings},
        "settings": {name: read_json(run / name / "config.json") for name in trainings},
        "seconds": _seconds(run / "stages"),
        "speed": _speed(run / "grpo"),
        "bytes": _bytes(run),
        "provenance": next(iter(evaluations.values()))["provenance"] if evaluations else None,
    }
    _write_summary(target, summary)
    for source, name in _artefacts(run):
        with replacing(target / name) as temporary:
            shutil.copyfile(source, temporary)


def add(evaluation: Path, target: Path) -> None:
    """Adds the scores of one results file to the summary in `target`; the run's other files need not be there any more."""
    summary = read_json(target / "summary.json")
    summary["evaluations"][evaluation.stem] = _scores(read_json(evaluation))
    _write_summary(target, summary)


def _write_summary(target: Path, summary: dict[str, Any]) -> None:
    with replacing(target / "summary.json") as temporary:
        temporary.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {target}")


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
    """The text of the document with these tables in their places. Raises SystemExit when places and tables are not the same."""
    text = document.read_text(encoding="utf-8")
    places = [name for _, name, _, _ in PLACE.findall(text)]
    if sorted(places) != sorted(made):
        raise SystemExit(f"{document} has places for tables of {', '.join(places)}; there are tables of {', '.join(made)}")
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
        evaluated = [summary["evaluations"]["results"] for summary in seeds.values()]
        base, finetuned, distilled = (
            ", ".join(dict.fromkeys(f"{arms[name]['pass_at_1']:.1f}" for arms in evaluated))
            for name in ("base", "fine-tuned", DISTILLED)
        )
        gaps = [arms[DISTILLED] for arms in evaluated]
        gap = _gap(gaps[0]) if len(gaps) == 1 else ", ".join(f"{arm['gap_recovered']:.0f}" for arm in gaps)
        size = max(summary["bytes"]["vectors"] for summary in seeds.values())
        count = evaluated[0]["base"]["num_eval_problems"]
        rows.append(
            f"| {MODELS[model]}, {TASKS[task]}; {count} problems, {len(seeds)} run{'s' * (len(seeds) > 1)} "
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
    others = {n: a for n, a in first["evaluations"].items() if n not in ("results", "methods", "sweep")}
    if others:
        head = "| transfer, seed 0 | base, pass@1 % | fine-tuned | steered | gap recovered % |"
        rows = [
            f"| {name.replace('-', ' ')} | {_score(arms['base'])} | {_score(arms['fine-tuned'])} "
            f"| {_score(arms[DISTILLED])} | {_gap(arms[DISTILLED])} |"
            for name, arms in others.items()
        ]
        yield "\n".join([head, _rule(head), *rows])
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
                average = f"{mean(values):.1f}" if len(values) == len(arms) else ""
                rows.append(f"| {name} | {' | '.join(cell(arm) for arm in arms)} | {average} |")
        yield "\n".join([head, _rule(head), *rows])


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


def _gap(arm: dict[str, Any]) -> str:
    # A share without an interval is one of a gap that may be none.
    if arm.get("gap_recovered") is None or not arm["gap_recovered_ci95"]:
        return ""
    low, high = arm["gap_recovered_ci95"]
    return f"{arm['gap_recovered']:.0f} ({low:.0f} to {high:.0f})"


def _rule(head: str) -> str:
    return "| " + " | ".join(["---"] * (head.count("|") - 1)) + " |"


def _scores(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The arms of a results file by the names that the tables have for them."""
    steered = results["base_with_steering"]
    arms = {"base": results["base_model"], "fine-tuned": results["finetuned_model"]}
    arms |= {DISTILLED if len(steered) == 1 else f"weight {weight}": arm for weight, arm in steered.items()}
    for arm in results.get("random_control", {}).values():
        arms[ARMS["random_control"]] = arm
    for name, arm in results.get("controls", {}).items():
        file = re.match(r"vectors of (.*)\.safetensors \(", name)
        arms[next((ARMS[key] for key in ARMS if file and file[1].endswith(key)), name)] = arm
    return {name: {key: arm[key] for key in SCORES if key in arm} for name, arm in arms.items()}


def _search(folder: Path) -> dict[str, Any]:
    search, results = read_json(folder / "search.json"), read_json(folder / "results.json")
    best = search["best"]
    return {
        "trials": len(search["trials"]),
        "dev_problems": max(trial["problems"] for trial in search["trials"]),
        "params": ", ".join(f"{k} {v:.2f}" if isinstance(v, float) else _SEARCHED.get(v, v) for k, v in best["params"].items()),
        "score": best["score"],
        "arms": _scores(results),
    }


def _chosen(path: Path) -> dict[str, Any]:
    content = read_json(path)
    return {key: content[key] for key in ("counts", "completions_per_problem", "histogram", "settings")}


def _dev_scores(run: Path) -> dict[str, Any]:
    return {
        step: {key: scores[key] for key in SCORES if key in scores}
        for step, scores in read_json(run / "eval_summary.json").items()
    }


def _seconds(stages: Path) -> dict[str, list[float]]:
    """Wall, user and system seconds of every stage; a stage that was stopped more than once has their sum."""
    seconds: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for name, *values in map(str.split, stages.read_text(encoding="utf-8").splitlines()):
        seconds[name] = [before + float(value) for before, value in zip(seconds[name], values, strict=True)]
    return dict(seconds)


def _speed(run: Path) -> dict[str, float]:
    """Medians over GRPO's steps, in completion tokens: those of groups without signal are sampled, but not trained."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [row for row in rows if row.get("update_seconds")]
    sampled = [row["tokens_per_second"] for row in steps]
    tokens = [row["tokens_per_second"] * row["sampling_seconds"] * (1 - row["no_signal_rate"]) for row in steps]
    trained = [count / row["update_seconds"] for count, row in zip(tokens, steps, strict=True)]
    return {"sampled_tokens_per_second": median(sampled), "trained_tokens_per_second": median(trained)}


def _bytes(run: Path) -> dict[str, int]:
    weights = sorted(run.glob("grpo/checkpoint_step_*"))[-1].glob("model*.safetensors")
    return {
        "checkpoint": sum(path.stat().st_size for path in weights),
        "vectors": next(run / name for name in _LEARNED if (run / name).exists()).stat().st_size,
    }


def _artefacts(run: Path) -> Iterator[tuple[Path, str]]:
    for path in sorted([*run.glob("*.safetensors"), *run.glob("*.png"), *run.glob("*.info.json")]):
        yield path, path.name
    for path in [run / name for name in _LEARNED if (run / name).exists()]:
        yield path, f"{path.parent.name}.safetensors"


def main(arguments: list[str]) -> None:
    """`keep RUN ...`, `add RESULTS ...` or `tables`."""
    if arguments[:1] == ["keep"] and len(arguments) > 1:
        for run in map(Path, arguments[1:]):
            keep(run, RESULTS / run.name)
    elif arguments[:1] == ["add"] and len(arguments) > 1:
        for evaluation in map(Path, arguments[1:]):
            add(evaluation, RESULTS / evaluation.parent.name)
    elif arguments == ["tables"]:
        for document, made in tables(RESULTS).items():
            text = filled(document, made)
            with replacing(document) as temporary:
                temporary.write_text(text, encoding="utf-8")
            print(f"wrote {document}")
    else:
        raise SystemExit("usage: python recipes/results.py keep RUN ... | add RESULTS ... | tables")


if __name__ == "__main__":
    main(sys.argv[1:])
