"""`steerlift demo`: the whole pipeline on the embedded model, by the same functions as the other verbs."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from steerlift.commands.demo_config import DemoConfig
from steerlift.evaluation.config import EvaluateConfig
from steerlift.evaluation.evaluate import evaluate
from steerlift.extraction.config import ExtractConfig
from steerlift.extraction.extract import extract
from steerlift.records.progress import say
from steerlift.records.runs import completions_path, replacing_folder, write_json
from steerlift.report.config import PlotConfig
from steerlift.report.plots import plot
from steerlift.report.tables import print_lines, print_paths, print_results, print_stages
from steerlift.training.config import TrainConfig
from steerlift.training.embedded import EmbeddedRecipe, embedded_base
from steerlift.training.learn import learn, learned_path
from steerlift.training.learn_config import LearnConfig
from steerlift.training.train import train

WEIGHTS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)

_CLOSING = """
What this was: the embedded model is a toy of half a million parameters, made for this demo. It first learned to work small
sums out, then a noisy habit of skipping the work, so a skill is hidden in it under noise on purpose. GRPO brings the skill
back; the vectors carry what changed. The numbers are real and measured here, but they say nothing about a real model.

Next, for a real one: the same five commands, on a GPU for 7B, on a laptop for a model of 135M parameters:
  steerlift train    --model_name Qwen/Qwen2.5-7B-Instruct --output_dir final_run
  steerlift extract  --base_model_name Qwen/Qwen2.5-7B-Instruct --finetuned_checkpoint final_run/checkpoint_step_1000
  steerlift evaluate --finetuned_checkpoint final_run/checkpoint_step_1000 --eval-size 200 --dev_size 100
  steerlift plot     --results-path steering_eval_results.json"""


def demo(config: DemoConfig) -> dict[str, Any]:
    """Runs every stage and writes models, vectors, results, figure and summary. Returns the summary."""
    folder = config.output_dir
    stages = _Stages()
    with stages.timed("pre-train the base model"):
        base = _copy(embedded_base(EmbeddedRecipe(seed=config.seed), config.fresh), folder / "base")
    with stages.timed("GRPO"):
        finetuned = _copy(train(_train_config(config, base)), folder / "finetuned")
    with stages.timed("extract vectors"):
        extraction = _extract_config(config, base, finetuned)
        vectors = extract(extraction)
    with stages.timed("learn vectors"):
        learned = learned_path(_learn_config(config, base, finetuned).output_dir)
        learn(_learn_config(config, base, finetuned))
    with stages.timed("evaluate on dev and test"):
        evaluation = _evaluate_config(config, base, finetuned)
        results = evaluate(evaluation)
        learned_evaluation = _learned_evaluation(evaluation, learned)
        learned_results = evaluate(learned_evaluation)
    with stages.timed("draw the figure"):
        figure = plot(PlotConfig(evaluation.output_path, folder / "figure.png"))
    learned_arm = learned_results["base_with_steering"]["1.0"]
    summary = summarize_demo(results, learned_arm, vectors.vectors.metadata, config.seed, stages.total())
    write_json(folder / "summary.json", summary)
    print_results(results, [], {"base + learned vectors": learned_arm})
    print_stages(stages.seconds)
    print_lines(_example(results))
    print_lines([_CLOSING, ""])
    print_paths(
        [
            folder / "base",
            folder / "finetuned",
            extraction.output_path,
            learned,
            evaluation.output_path,
            completions_path(evaluation.output_path),
            learned_evaluation.output_path,
            figure,
            folder / "summary.json",
        ]
    )
    return summary


def summarize_demo(
    results: dict[str, Any],
    learned: dict[str, Any],
    metadata: Any,  # noqa: ANN401 - a mapping of strings
    seed: int,
    seconds: float,
) -> dict[str, Any]:
    """summary.json: the scores of the weight chosen on development problems and of the learned vectors, in percent."""
    weight = results["chosen"]["weight"]
    steered = results["base_with_steering"][weight]

    def score(arm: dict[str, Any]) -> dict[str, Any]:
        return {"pass_at_1": arm["pass_at_1"], "ci95": arm["ci95"]}

    return {
        "base": score(results["base_model"]),
        "finetuned": score(results["finetuned_model"]),
        "steered": {
            "weight": float(weight),
            "method": metadata["method"],
            "tokens": metadata["tokens"],
            **score(steered),
        },
        "random_control": {"weight": float(weight), **score(results["random_control"][weight])},
        "learned": {
            "weight": 1.0,
            **score(learned),
            "gap_recovered": learned["gap_recovered"],
            "gap_recovered_ci95": learned["gap_recovered_ci95"],
        },
        "gap_recovered": steered["gap_recovered"],
        "gap_recovered_ci95": steered["gap_recovered_ci95"],
        "seed": seed,
        "seconds": round(seconds, 1),
        "provenance": results["provenance"],
    }


def _train_config(config: DemoConfig, base: Path) -> TrainConfig:
    return TrainConfig(
        model_name=str(base),
        output_dir=config.output_dir / "train",
        problems="embedded",
        seed=config.seed,
        eval_size=100,
        num_completions_eval=2,
        num_train_iters=50,
        eval_every=25,
        save_every=50,
        gradient_accumulation_steps=16,
        num_chains=8,
        micro_batch_size=128,
        temperature=1.0,
        max_completion_length=48,
        learning_rate=3e-4,
        warmup_percent=0.1,
        weight_decay=0.0,
        max_grad_norm=1.0,
        overwrite=True,
    )


def _extract_config(config: DemoConfig, base: Path, finetuned: Path) -> ExtractConfig:
    return ExtractConfig(
        base_model_name=str(base),
        finetuned_checkpoint=str(finetuned),
        output_path=config.output_dir / "vectors.safetensors",
        problems="embedded",
        train_size=1000,
        max_completion_length=48,
        seed=config.seed,
    )


def _learn_config(config: DemoConfig, base: Path, finetuned: Path) -> LearnConfig:
    return LearnConfig(
        model_name=str(base),
        finetuned_checkpoint=str(finetuned),
        output_dir=config.output_dir / "learn",
        problems="embedded",
        seed=config.seed,
        eval_size=100,
        num_completions_eval=2,
        num_train_iters=150,
        eval_every=150,
        save_every=150,
        gradient_accumulation_steps=16,
        micro_batch_size=32,
        temperature=1.0,
        max_completion_length=48,
        learning_rate=0.1,
        warmup_percent=0.05,
        final_lr_percent=0.0,
        overwrite=True,
    )


def _learned_evaluation(evaluation: EvaluateConfig, learned: Path) -> EvaluateConfig:
    """The same test problems; learned vectors are made to be added at weight 1, so there is nothing to choose."""
    return replace(
        evaluation,
        steering_vectors_path=learned,
        output_path=evaluation.output_path.with_name("learned_results.json"),
        weights=(1.0,),
        dev_size=0,
        random_control=False,
    )


def _evaluate_config(config: DemoConfig, base: Path, finetuned: Path) -> EvaluateConfig:
    return EvaluateConfig(
        base_model_name=str(base),
        finetuned_checkpoint=str(finetuned),
        steering_vectors_path=config.output_dir / "vectors.safetensors",
        output_path=config.output_dir / "results.json",
        problems="embedded",
        eval_size=400,
        dev_size=120,
        num_completions_eval=4,
        weights=WEIGHTS,
        temperature=1.0,
        max_completion_length=48,
        random_control=True,
        seed=config.seed,
        overwrite=True,
    )


def _copy(source: Path, target: Path) -> Path:
    with replacing_folder(target) as temporary:
        shutil.copytree(source, temporary, dirs_exist_ok=True)
    return target


def _example(results: dict[str, Any]) -> list[str]:
    """One test problem that steering turned from wrong to right, answered under three weights and by the fine-tuned model."""
    chosen = results["chosen"]["weight"]
    weights = dict.fromkeys((str(WEIGHTS[1]), chosen))
    arms = {
        "base": results["base_model"]["examples"],
        **{f"base + {weight} x vectors": results["base_with_steering"][weight]["examples"] for weight in weights},
        "fine-tuned": results["finetuned_model"]["examples"],
    }
    base, steered, finetuned = arms["base"], arms[f"base + {chosen} x vectors"], arms["fine-tuned"]
    for index, example in enumerate(base):
        if (
            not example["completions"][0]["correct"]
            and steered[index]["completions"][0]["correct"]
            and finetuned[index]["completions"][0]["correct"]
        ):
            lines = [f"One of the problems: {example['question']}  (answer {example['target_answer']})"]
            width = max(map(len, arms))
            return ["", *lines, *(f"  {name:<{width}}  {arm[index]['completions'][0]['text']}" for name, arm in arms.items())]
    return []


class _Stages:
    """Seconds of each stage, in order."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        say(f"== {name}")
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start

    def total(self) -> float:
        return sum(self.seconds.values())
