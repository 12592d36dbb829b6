"""What a training run leaves behind: metrics and completions line by line, and the original's two JSON files."""

import shutil
from dataclasses import asdict
from typing import Any

from steerlift.evaluation.results import examples, summarize
from steerlift.records.errors import InputError, MissingDependencyError
from steerlift.records.provenance import provenance
from steerlift.records.runs import Journal, read_json, write_json
from steerlift.records.types import GradedProblem
from steerlift.scoring.rewards import format_reward, reward
from steerlift.training.config import TrainConfig


class RunLog:
    """The files of a run directory.

    metrics.jsonl has one line per step, completions.jsonl one per problem and step. run_log.json shows the first problem of
    each step, as the original does; it is written whole at checkpoints, eval_summary.json at evaluations.
    """

    def __init__(self, config: TrainConfig, device: str) -> None:
        self.config = config
        self.folder = config.output_dir
        self.arguments = {**asdict(config), "output_dir": str(config.output_dir)}
        self._prepare()
        self.metrics = Journal(self.folder / "metrics.jsonl")
        self.completions = Journal(self.folder / "completions.jsonl")
        self.steps: dict[str, dict[str, Any]] = {}
        self.evaluations: dict[str, dict[str, Any]] = {}
        origin = provenance(model=config.model_name, seed=config.seed, device=device)
        write_json(self.folder / "config.json", {**self.arguments, "provenance": origin})
        self.wandb = _wandb_run(config, self.arguments) if config.use_wandb else None

    def _prepare(self) -> None:
        settings = self.folder / "config.json"
        if settings.exists() and "provenance" not in read_json(settings):
            raise InputError(f"{self.folder} holds a model, not a run; name another --output_dir")
        if settings.exists() and not self.config.overwrite:
            raise InputError(f"{self.folder} holds another run; name another --output_dir or pass --overwrite")
        if self.config.overwrite:
            # Only what a run writes: the folder may be the user's own.
            for name in ("metrics.jsonl", "completions.jsonl", "run_log.json", "eval_summary.json", "config.json"):
                (self.folder / name).unlink(missing_ok=True)
            for checkpoint in self.folder.glob("checkpoint_step_*"):
                shutil.rmtree(checkpoint)

    def train_step(self, step: int, graded: list[GradedProblem], metrics: dict[str, Any]) -> None:
        """Records one optimizer step."""
        self.metrics.append([{"step": step, **metrics}])
        self.completions.append({"step": step, **g.to_row()} for g in graded)
        self._step(step)["train"] = {**_train_entry(graded[0]), "loss": metrics["loss"], "lr": metrics["lr"]}
        if self.wandb is not None:
            self.wandb.log(metrics, step=step)

    def evaluation(self, step: int, graded: list[GradedProblem]) -> dict[str, Any]:
        """Records one evaluation; returns its metrics."""
        k = self.config.pass_at_k
        summary = summarize(graded, k, self.config.seed)
        self._step(step)["eval"] = {"examples": examples(graded, k), "metrics": summary}
        self.evaluations[str(step)] = summary
        write_json(self.folder / "eval_summary.json", self.evaluations)
        if self.wandb is not None:
            self.wandb.log({f"eval/{key}": value for key, value in summary.items()}, step=step)
        return summary

    def write(self) -> None:
        """Writes run_log.json, whole."""
        write_json(self.folder / "run_log.json", {"args": self.arguments, "steps": self.steps})

    def close(self) -> None:
        """Writes everything that is not written yet."""
        self.write()
        if self.wandb is not None:
            self.wandb.finish()

    def _step(self, step: int) -> dict[str, Any]:
        return self.steps.setdefault(str(step), {})


def _train_entry(graded: GradedProblem) -> dict[str, Any]:
    return {
        "prompt": graded.prompt,
        "question": graded.problem.problem,
        "target_answer": graded.problem.answer,
        "problem_type": graded.problem.problem_type,
        "generations": [
            {
                "text": completion.text,
                "extracted_answer": grade.extracted_answer,
                "correct": grade.correct,
                "format_reward": format_reward(grade),
                "total_reward": reward(grade),
            }
            for completion, grade in zip(graded.completions, graded.grades, strict=True)
        ],
    }


def import_wandb() -> Any:  # noqa: ANN401 - wandb is untyped here
    """The wandb module. Raises MissingDependencyError where it is not installed."""
    try:
        import wandb
    except ImportError as error:
        raise MissingDependencyError("--use_wandb needs wandb: pip install 'steerlift[wandb]'") from error
    return wandb


def _wandb_run(config: TrainConfig, arguments: dict[str, Any]) -> Any:  # noqa: ANN401 - wandb is untyped here
    return import_wandb().init(
        project=config.wandb_project, name=config.wandb_run, config=arguments, dir=str(config.output_dir)
    )
