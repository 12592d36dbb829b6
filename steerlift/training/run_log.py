"""What a training run leaves behind: JSONL files line by line, and the original's two JSON files made from them."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from steerlift.evaluation.results import examples, summarize
from steerlift.records.errors import InputError
from steerlift.records.progress import say
from steerlift.records.provenance import provenance
from steerlift.records.runs import Journal, check_writable, read_json, write_json
from steerlift.records.types import GradedProblem
from steerlift.scoring.rewards import format_reward
from steerlift.training.checkpoints import checkpoint_path, remove_checkpoints, saved_steps, tidy
from steerlift.training.config import TrainConfig
from steerlift.training.trackers import open_trackers

# What may differ when a run goes on: how fast, where, how often, and the ways out of a run that went wrong.
_MAY_CHANGE = (
    "resume",
    "overwrite",
    "output_dir",
    "reuse",
    "data_dir",
    "device",
    "micro_batch_size",
    "batch_rows",
    "gradient_checkpointing",
    "attention",
    "num_train_iters",
    "learning_rate",
    "max_grad_norm",
    "eval_every",
    "save_every",
    "keep_checkpoints",
    "use_wandb",
    "use_trackio",
    "wandb_project",
    "wandb_run",
    "vllm_host",
    "vllm_port",
    "vllm_patience",
)
COMPLETIONS_TO_LEARN_FROM = "finetuned_completions.jsonl"
# Only what a run writes: the folder may be the user's own. config.json is last to go: it tells what the others are.
_FILES = (
    "metrics.jsonl",
    "completions.jsonl",
    "eval_completions.jsonl",
    COMPLETIONS_TO_LEARN_FROM,
    "resumed.jsonl",
    "run_log.json",
    "eval_summary.json",
    "trackers.json",
    "config.json",
)


class RunLog:
    """The files of a run directory.

    metrics.jsonl has one line per step, completions.jsonl one per problem and step, eval_completions.jsonl one per problem
    and evaluation. run_log.json shows the first problem of each step and all evaluations, as the original does; it is made
    from those three at the end, and before that whenever a run has doubled, so that steps do not get slower.
    """

    def __init__(self, config: TrainConfig, device: str, resume_from: int | None = None) -> None:
        """`resume_from` is the step of the checkpoint to go on from; what the files hold of later steps is cut off."""
        self.config = config
        self.folder = config.output_dir
        self.arguments = {name: value for name, value in _plain(config).items() if name not in ("resume", "overwrite")}
        self._metrics = Journal(self.folder / "metrics.jsonl")
        self._completions = Journal(self.folder / "completions.jsonl")
        self._eval_completions = Journal(self.folder / "eval_completions.jsonl")
        self.evaluations: dict[str, dict[str, Any]] = {}
        self._written_at = 0
        check_writable(self.folder / "config.json")
        origin = provenance(model=config.model_name, seed=config.seed, device=device)
        if resume_from is None:
            self._clear()
            write_json(self.folder / "config.json", {**self.arguments, "provenance": origin})
        else:
            self._cut_after(resume_from)
            Journal(self.folder / "resumed.jsonl").append([{"step": resume_from, "provenance": origin}])
        self.trackers = open_trackers(
            config.use_wandb,
            config.use_trackio,
            config.wandb_project,
            config.wandb_run,
            self.arguments,
            self.folder,
            resume_from is not None,
        )

    def train_step(
        self, step: int, graded: Sequence[GradedProblem], rewards: Sequence[Sequence[float]], metrics: dict[str, Any]
    ) -> None:
        """Records one step: its problems, the rewards of their completions and the step's metrics."""
        self._completions.append(
            {"step": step, "rewards": list(values), **g.to_row()} for g, values in zip(graded, rewards, strict=True)
        )
        self._metrics.append([{"step": step, **metrics}])
        for tracker in self.trackers:
            tracker.log(metrics, step)

    def evaluation(self, step: int, graded: Sequence[GradedProblem]) -> None:
        """Records one evaluation."""
        summary = summarize(graded, self.config.pass_at_k, self.config.seed)
        self._eval_completions.append({"step": step, **g.to_row()} for g in graded)
        self.evaluations[str(step)] = summary
        write_json(self.folder / "eval_summary.json", self.evaluations)
        scores = {f"eval/{key}": value for key, value in summary.items() if isinstance(value, (int, float))}
        for tracker in self.trackers:
            tracker.log(scores, step)

    def checkpoint(self, step: int) -> None:
        """Called when a checkpoint is complete: tidies up, and writes run_log.json if the run has doubled since."""
        tidy(self.folder, self.config.keep_checkpoints)
        if step >= 2 * self._written_at:
            self.write()
            self._written_at = step

    def write(self) -> None:
        """Writes run_log.json, whole."""
        steps: dict[str, dict[str, Any]] = {}
        metrics = {row["step"]: row for row in self._metrics.rows()}
        for row in self._completions.rows():
            entry = steps.setdefault(str(row["step"]), {})
            if "train" not in entry and row["step"] in metrics:
                line = metrics[row["step"]]
                train = _train_entry(GradedProblem.from_row(row), row["rewards"])
                entry["train"] = {**train, "loss": line["loss"], "lr": line["lr"]}
        evaluated: dict[int, list[GradedProblem]] = {}
        for row in self._eval_completions.rows():
            evaluated.setdefault(row["step"], []).append(GradedProblem.from_row(row))
        for step, graded in evaluated.items():
            evaluation = {"examples": examples(graded, self.config.pass_at_k[0]), "metrics": self.evaluations[str(step)]}
            steps.setdefault(str(step), {})["eval"] = evaluation
        ordered = dict(sorted(steps.items(), key=lambda item: int(item[0])))
        write_json(self.folder / "run_log.json", {"args": self.arguments, "steps": ordered})

    def close(self) -> None:
        """Writes run_log.json and ends the trackers."""
        self.write()
        for tracker in self.trackers:
            tracker.finish()

    def _clear(self) -> None:
        remove_checkpoints(self.folder)
        for name in _FILES:
            # A run that was stopped before its first checkpoint has no step to go on from, but these it has.
            if not (self.config.resume and name == COMPLETIONS_TO_LEARN_FROM):
                (self.folder / name).unlink(missing_ok=True)
        self._sweep()

    def _cut_after(self, step: int) -> None:
        for journal in (self._metrics, self._completions, self._eval_completions):
            journal.keep_while(lambda row: row["step"] <= step)
        path = self.folder / "eval_summary.json"
        summaries = read_json(path) if path.exists() else {}
        self.evaluations = {name: summary for name, summary in summaries.items() if int(name) <= step}
        write_json(path, self.evaluations)
        tidy(self.folder, self.config.keep_checkpoints)
        self._sweep()

    def _sweep(self) -> None:
        """Removes half-written files that a kill has left."""
        for name in _FILES:
            for leftover in self.folder.glob(f".{name}.*"):
                leftover.unlink()


def check_folder(config: TrainConfig) -> None:
    """Raises InputError unless the output folder is free, or holds the run to resume, or may be overwritten."""
    settings = config.output_dir / "config.json"
    steps = saved_steps(config.output_dir)
    model = Path(config.model_name).resolve()
    if config.overwrite and any(
        checkpoint_path(config.output_dir, step).resolve() in (model, *model.parents) for step in steps
    ):
        raise InputError(f"--overwrite would delete --model_name {config.model_name}; name another --output_dir")
    if not settings.exists():
        # The original's runs have no config.json.
        if not config.overwrite and (steps or (config.output_dir / "run_log.json").exists()):
            raise InputError(f"{config.output_dir} holds another run; name another --output_dir, or --overwrite to start over")
        return
    before = read_json(settings)
    if "provenance" not in before:
        raise InputError(f"{config.output_dir} holds a model, not a run; name another --output_dir")
    if config.overwrite:
        return
    if not config.resume:
        raise InputError(
            f"{config.output_dir} holds another run; name another --output_dir, pass --resume to go on with it,"
            " or --overwrite to start over"
        )
    now = _plain(config)
    changed = {name: (before.get(name), now[name]) for name in now if name not in _MAY_CHANGE and before.get(name) != now[name]}
    if changed:
        text = ", ".join(f"{name}: {old} there, {new} here" for name, (old, new) in changed.items())
        raise InputError(f"--resume: {config.output_dir} is a run with other options ({text}); give the same, or --overwrite")
    for name in ("learning_rate", "max_grad_norm", "num_train_iters"):
        if before.get(name) != now[name]:
            say(f"going on with --{name} {now[name]} instead of {before.get(name)}")


def _plain(config: TrainConfig) -> dict[str, Any]:
    """The options as JSON has them."""
    values = asdict(config)
    return {
        name: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
        for name, value in values.items()
    }


def _train_entry(graded: GradedProblem, rewards: Sequence[float]) -> dict[str, Any]:
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
                "total_reward": value,
            }
            for completion, grade, value in zip(graded.completions, graded.grades, rewards, strict=True)
        ],
    }
