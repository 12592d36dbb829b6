"""How much of the gap do vectors recover on the embedded model? Several seeds, each from nothing, with all controls.

    OMP_NUM_THREADS=1 python recipes/embedded_seeds.py runs/seeds 0 1 2 3 4

Each seed is a `steerlift demo`, whose mean-difference vectors have their weight chosen on 120 development problems; then others
are learned by distillation, and by GRPO without the fine-tuned model, and added at weight 1: nothing of them is chosen by
any score. Everything is reported on 400 test problems x 4 completions, temperature 1. A seed that is done is not run again, so
two processes can share the seeds; the last to end prints the tables of all that are there.
"""

from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

from as_command import as_command

from steerlift.commands.demo import demo
from steerlift.commands.demo_config import DemoConfig
from steerlift.evaluation.config import EvaluateConfig
from steerlift.evaluation.evaluate import evaluate
from steerlift.records.errors import InputError
from steerlift.records.runs import read_json, write_json
from steerlift.training.learn import learn, learned_path
from steerlift.training.learn_config import LearnConfig

CONTROLS = ("random", "negated", "shuffled", "cooler", "format")
SCORES = ("pass_at_1", "ci95", "gap_recovered", "gap_recovered_ci95", "lenient_pass_at_1", "format_rate", "mean_length")


def main(folder: Path, seeds: list[int]) -> None:
    """Runs what is missing and prints the tables."""
    if not seeds:
        raise InputError("expected seeds after the folder, for instance 0 1 2 3 4")
    for seed in seeds:
        if not (folder / f"seed{seed}.json").exists():
            write_json(folder / f"seed{seed}.json", run_seed(folder / f"seed{seed}", seed))
    done = {path.stem: read_json(path) for path in sorted(folder.glob("seed*.json"))}
    for name, other in pairwise([*done, next(iter(done))]):
        done[name]["arms"]["vectors of another run"] = other_run(folder / name, folder / other)
    print_tables(done)


def run_seed(folder: Path, seed: int) -> dict[str, Any]:
    """Every arm of one seed."""
    demo(DemoConfig(folder / "demo", seed=seed))
    distill, grpo = trainings(folder, seed)
    learn(distill)
    learn(grpo)
    by_mean = read_json(folder / "demo" / "results.json")
    weight = by_mean["chosen"]["weight"]
    controlled = evaluation(folder, seed)
    by_distill = evaluate(controlled)
    by_grpo = evaluate(
        replace(
            controlled,
            steering_vectors_path=learned_path(grpo.output_dir),
            output_path=folder / "grpo.json",
            controls=(),
        )
    )
    return {
        "arms": {
            "base": _scores(by_mean["base_model"]),
            "fine-tuned": _scores(by_mean["finetuned_model"]),
            "mean difference": _scores(by_mean["base_with_steering"][weight]) | {"weight": weight},
            "learned by distillation": _scores(by_distill["base_with_steering"]["1.0"]),
            "learned by GRPO alone": _scores(by_grpo["base_with_steering"]["1.0"]),
            **{name: _scores(arm) for name, arm in by_distill["controls"].items()},
        },
        "settings": {"distill": _plain(distill), "grpo": _plain(grpo)},
        "provenance": by_distill["provenance"],
    }


def trainings(folder: Path, seed: int) -> tuple[LearnConfig, LearnConfig]:
    """Vectors learned by distillation, and by GRPO alone, on the models of the demo in `folder`."""
    distill = LearnConfig(
        model_name=str(folder / "demo" / "base"),
        finetuned_checkpoint=str(folder / "demo" / "finetuned"),
        finetuned_temperature=0.7,
        output_dir=folder / "distill",
        problems="embedded",
        seed=seed,
        train_size=4000,
        eval_size=100,
        num_completions_eval=4,
        num_train_iters=300,
        eval_every=300,
        save_every=300,
        gradient_accumulation_steps=32,
        micro_batch_size=128,
        temperature=1.0,
        max_completion_length=48,
        learning_rate=0.1,
        warmup_percent=0.05,
        final_lr_percent=0.0,
        overwrite=True,
    )
    grpo = replace(
        distill,
        objective="grpo",
        finetuned_checkpoint=None,
        finetuned_temperature=None,
        output_dir=folder / "grpo",
        num_train_iters=150,
        eval_every=150,
        save_every=150,
        gradient_accumulation_steps=16,
        learning_rate=0.05,
    )
    return distill, grpo


def evaluation(folder: Path, seed: int) -> EvaluateConfig:
    """The distilled vectors of a seed, with all controls; what is there of it is not sampled again."""
    return EvaluateConfig(
        base_model_name=str(folder / "demo" / "base"),
        finetuned_checkpoint=str(folder / "demo" / "finetuned"),
        steering_vectors_path=folder / "distill" / "vectors.safetensors",
        output_path=folder / "distill.json",
        problems="embedded",
        eval_size=400,
        num_completions_eval=4,
        weights=(1.0,),
        temperature=1.0,
        max_completion_length=48,
        controls=CONTROLS,
        seed=seed,
    )


def other_run(folder: Path, other: Path) -> dict[str, Any]:
    """The base of one seed with the distilled vectors of another."""
    config = evaluation(folder, int(folder.name.removeprefix("seed")))
    results = evaluate(replace(config, other_vectors=(other / "distill" / "vectors.safetensors",)))
    return _scores(next(arm for name, arm in results["controls"].items() if name.startswith("vectors of")))


def print_tables(seeds: dict[str, dict[str, Any]]) -> None:
    """Scores and shares of the gap, as docs/results.md has them."""
    names = list(next(iter(seeds.values()))["arms"])
    for title, key in (("pass@1 %", "pass_at_1"), ("gap recovered %", "gap_recovered")):
        print(f"\n| {title} |", " | ".join(seeds), "| mean |")
        print("| --- |", " | ".join("---" for _ in seeds), "| --- |")
        for name in names:
            values = [seed["arms"][name].get(key) for seed in seeds.values()]
            if None not in values:
                print(f"| {name} |", " | ".join(f"{value:.1f}" for value in values), f"| {mean(values):.1f} |")


def _scores(arm: dict[str, Any]) -> dict[str, Any]:
    return {name: arm[name] for name in SCORES if name in arm}


def _plain(config: LearnConfig) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()}


if __name__ == "__main__":
    as_command(main)
