"""Keeps what is small of finished recipes under results/: scores, vectors, figures, settings, seconds.

    python recipes/keep.py runs/smollm2-sums-0 runs/smollm2-sums-1      # runs
    python recipes/keep.py runs/smollm2-sums-0/temperature-0.json       # one evaluation more, of a run that is kept already

recipes/tables.py makes the tables in the docs of it.
"""

import json
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from arms import ANSWERS, ARMS, BESIDE, DISTILLED, LONGER
from as_command import as_command

from steerlift.records.errors import InputError
from steerlift.records.runs import read_json, replacing

RESULTS = Path(__file__).parent.parent / "results"

_TRAININGS = ("grpo", "distill", "learn-grpo", "longer")
_LEARNED = ("distill/vectors.safetensors", "learn-grpo/vectors.safetensors")
# The vectors of a search by the names of their files.
_SEARCHED = {"vectors": "the vectors learned by distillation", "increments": "the increments"}
SCORES = (
    "pass_at_1", "ci95", "difference_from_base", "difference_ci95", "gap_recovered", "gap_recovered_ci95", "lenient_pass_at_1",
    "format_rate", "truncated_rate", "mean_length", "num_eval_problems", "completions_per_problem", "weight",
)  # fmt: skip


def keep(run: Path, target: Path) -> None:
    """Copies the vectors and figures of a run and writes summary.json: all scores, sizes and seconds, no completions.

    A run that is not at its end keeps what it has. Raises InputError where there are no vectors yet.
    """
    artefacts = dict(_artefacts(run))
    vectors = [path for path in artefacts.values() if path.suffix == ".safetensors"]
    if not vectors:
        raise InputError(f"{run} has no vectors: expected *.safetensors or {' or '.join(_LEARNED)}; let its recipe go on")
    target.mkdir(parents=True, exist_ok=True)
    contents = {path.stem: read_json(path) for path in sorted(run.glob("*.json"))}
    evaluations = {name: content for name, content in contents.items() if "base_model" in content}
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
        "bytes": _bytes(run, vectors[0]),
        "provenance": next(iter(evaluations.values()))["provenance"] if evaluations else None,
    }
    _write_summary(target, summary)
    for name, source in artefacts.items():
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


def _scores(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The arms of a results file by the names that the tables have for them."""
    steered = results["base_with_steering"]
    arms = {"base": results["base_model"], "fine-tuned": results["finetuned_model"] or {}}
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


def _bytes(run: Path, vectors: Path) -> dict[str, int]:
    weights = sorted(run.glob("grpo/checkpoint_step_*"))[-1].glob("model*.safetensors")
    return {
        "checkpoint": sum(path.stat().st_size for path in weights),
        "vectors": vectors.stat().st_size,
    }


def _artefacts(run: Path) -> Iterator[tuple[str, Path]]:
    """What is kept by its name there, learned vectors first."""
    for path in (run / name for name in _LEARNED):
        if path.exists():
            yield f"{path.parent.name}.safetensors", path
    for path in sorted([*run.glob("*.safetensors"), *run.glob("*.png"), *run.glob("*.info.json")]):
        yield path.name, path


def main(paths: list[Path]) -> None:
    """Keeps finished runs, and adds evaluations (RUN/NAME.json) to runs that are kept."""
    if not paths:
        raise InputError("nothing to keep: expected folders of runs, or evaluations (RUN/NAME.json) of runs that are kept")
    for path in paths:
        if path.suffix == ".json":
            add(path, RESULTS / path.parent.name)
        else:
            keep(path, RESULTS / path.name)


if __name__ == "__main__":
    as_command(main)
