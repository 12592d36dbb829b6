"""`steerlift train`: GRPO on any transformers causal language model, one problem set, one process."""

import copy
import math
import random
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from steerlift.problems.load import load_problems
from steerlift.problems.prompt import encode_prompt
from steerlift.records.errors import InputError, NotFiniteError, TrainingDivergedError
from steerlift.records.progress import Progress, progress, say
from steerlift.records.types import GradedProblem, Problem
from steerlift.sampling.draws import row_seed
from steerlift.sampling.local import LocalSampler
from steerlift.sampling.rollouts import Task, prompt_ids, rollouts
from steerlift.sampling.sampler import SamplingOptions
from steerlift.steering.models import Model, Tokenizer, choose_device, choose_dtype, load_model, load_tokenizer
from steerlift.training.batch import StepBatch
from steerlift.training.checkpoints import checkpoint_path, save_checkpoint
from steerlift.training.config import TrainConfig
from steerlift.training.grpo import has_no_signal
from steerlift.training.policy_loss import PolicyLoss, import_liger, liger_loss, our_loss
from steerlift.training.run_log import RunLog, import_wandb


def train(config: TrainConfig) -> Path:
    """Trains, evaluates and saves as configured. Returns the last checkpoint."""
    if config.use_vllm:
        raise InputError("--use_vllm: this version samples on its own; leave the flag out (a vLLM sampler is planned)")
    check_extras(config)
    device = choose_device(config.device)
    dtype = choose_dtype(config.dtype, device)
    tokenizer = load_tokenizer(config.model_name)
    problems = _fitting(
        load_problems(config.problems, "train", config.train_size, config.seed, config.data_dir), tokenizer, config
    )
    held_out = load_problems(config.problems, "test", config.eval_size, config.seed, config.data_dir)
    model = load_model(config.model_name, device, dtype)
    say(f"training {config.model_name} ({str(dtype).removeprefix('torch.')}, {device}) on {len(problems)} problems")
    say(f"evaluating on {len(held_out)} test problems; writing to {config.output_dir}")
    log = RunLog(config, str(device))
    trainer = Trainer(config, model, tokenizer, log)
    with progress("training", config.num_train_iters) as bar:
        trainer.run(problems, held_out, bar)
    log.close()
    return checkpoint_path(config.output_dir, config.num_train_iters)


def check_extras(config: TrainConfig) -> None:
    """Raises MissingDependencyError for an option whose package is not installed, before anything is loaded or written."""
    if config.use_liger:
        import_liger()
    if config.use_wandb:
        import_wandb()


class Trainer:
    """The loop: sample, grade, one update; evaluate and save when it is time."""

    def __init__(self, config: TrainConfig, model: Model, tokenizer: Tokenizer, log: RunLog) -> None:
        self.config = config
        self.model = model
        self.tokenizer = tokenizer
        self.log = log
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.sampler = LocalSampler(model, tokenizer, batch_rows=config.batch_rows)
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            weight_decay=config.weight_decay,
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda done: learning_rate_factor(done, config))
        reference = copy.deepcopy(model).requires_grad_(False) if config.beta else None
        self.loss: PolicyLoss = (liger_loss if config.use_liger else our_loss)(config, model, reference)

    def run(self, problems: Sequence[Problem], held_out: Sequence[Problem], bar: Progress) -> None:
        """All steps, with evaluations at step 0, every `eval_every` steps and the end."""
        config = self.config
        pass_at_k = self._evaluate(0, held_out)
        for step in range(1, config.num_train_iters + 1):
            metrics = self._step(step, problems_of_step(problems, step, config.gradient_accumulation_steps, config.seed))
            last = step == config.num_train_iters
            if step % config.eval_every == 0 or last:
                pass_at_k = self._evaluate(step, held_out)
            if step % config.save_every == 0 or last:
                save_checkpoint(checkpoint_path(config.output_dir, step), self.model, self.tokenizer)
                self.log.write()
            bar.advance(1, f"reward {metrics['reward']:.2f}  right {metrics['accuracy']:.0%}  test {pass_at_k:.1f} %")

    def _evaluate(self, step: int, held_out: Sequence[Problem]) -> float:
        config = self.config
        options = SamplingOptions(config.temperature, config.max_completion_length)
        tasks = [Task(problem, config.num_completions_eval, config.seed) for problem in held_out]
        summary = self.log.evaluation(step, rollouts(self.sampler, self.tokenizer, tasks, options))
        return float(summary[f"pass_at_{config.pass_at_k}"])

    def _step(self, step: int, problems: Sequence[Problem]) -> dict[str, Any]:
        config = self.config
        start = time.perf_counter()
        options = SamplingOptions(config.temperature, config.max_completion_length)
        # Seeds per place too: a problem may end one epoch and begin the next within a step.
        tasks = [Task(p, config.num_chains, row_seed(config.seed, step, place)) for place, p in enumerate(problems)]
        try:
            graded = rollouts(self.sampler, self.tokenizer, tasks, options)
        except NotFiniteError as error:
            raise TrainingDivergedError(f"step {step}: {error}; try a lower --learning_rate") from error
        sampled = time.perf_counter()
        update = self._update(step, graded)
        grades = [grade for g in graded for grade in g.grades]
        lengths = [len(c.token_ids) for g in graded for c in g.completions]
        metrics = {
            **update,
            "accuracy": sum(grade.correct for grade in grades) / len(grades),
            "lenient_accuracy": sum(grade.lenient_correct for grade in grades) / len(grades),
            "format_rate": sum(grade.format_ok for grade in grades) / len(grades),
            "mean_length": sum(lengths) / len(lengths),
            "truncated_rate": sum(c.truncated for g in graded for c in g.completions) / len(grades),
            "sampling_seconds": sampled - start,
            "update_seconds": time.perf_counter() - sampled,
            "sampled_tokens_per_second": sum(lengths) / (sampled - start),
        }
        self.log.train_step(step, graded, metrics)
        return metrics

    def _update(self, step: int, graded: list[GradedProblem]) -> dict[str, float | None]:
        """One optimizer step from the completions just sampled."""
        config = self.config
        batch = StepBatch.build(
            [prompt_ids(self.tokenizer, g.prompt) for g in graded],
            graded,
            config.loss_type,
            config.max_completion_length,
            config.scale_rewards,
            keep_all=bool(config.beta),
        )
        self.model.train()
        loss, entropy, tokens = 0.0, 0.0, 0
        for micro_batch in batch.micro_batches(config.micro_batch_size or config.num_chains, self.model.device):
            part, entropies_N = self.loss(micro_batch)
            part.backward()  # type: ignore[no-untyped-call]
            loss += part.item()
            entropy += float(entropies_N.sum())
            tokens += len(entropies_N)
        grad_norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, config.max_grad_norm))
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            self._stop_diverged(step, loss, grad_norm)
        lr = float(self.schedule.get_last_lr()[0])
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {
            "loss": loss,
            "lr": lr,
            "reward": float(batch.rewards_PG.mean()),
            "no_signal_rate": float(has_no_signal(batch.rewards_PG).float().mean()),
            "entropy": entropy / tokens if tokens else None,
            "grad_norm": grad_norm,
        }

    def _stop_diverged(self, step: int, loss: float, grad_norm: float) -> None:
        # The optimizer has not moved yet: what is saved are the last good weights.
        saved = save_checkpoint(checkpoint_path(self.config.output_dir, step - 1), self.model, self.tokenizer)
        self.log.close()
        raise TrainingDivergedError(
            f"step {step}: loss {loss}, gradient norm {grad_norm}, expected finite numbers; "
            f"the weights before it are in {saved}; try a lower --learning_rate"
        )


def learning_rate_factor(done: int, config: TrainConfig) -> float:
    """The share of the peak rate after `done` optimizer steps: a linear rise, then a linear fall to final_lr_percent."""
    warmup = round(config.warmup_percent * config.num_train_iters)
    if done < warmup:
        return (done + 1) / warmup
    fallen = (done - warmup) / max(1, config.num_train_iters - warmup)
    return 1 - (1 - config.final_lr_percent) * min(1.0, fallen)


def problems_of_step(problems: Sequence[Problem], step: int, count: int, seed: int) -> list[Problem]:
    """The problems of an optimizer step (from 1): without replacement through each epoch, each epoch in an order of its own."""
    places = (divmod(place, len(problems)) for place in range((step - 1) * count, step * count))
    return [problems[_epoch_order(len(problems), row_seed(seed, epoch))[index]] for epoch, index in places]


@cache
def _epoch_order(count: int, seed: int) -> list[int]:
    return random.Random(seed).sample(range(count), count)


def _fitting(problems: list[Problem], tokenizer: Tokenizer, config: TrainConfig) -> list[Problem]:
    fitting = [p for p in problems if len(encode_prompt(tokenizer, p.problem)) <= config.max_prompt_length]
    if len(fitting) < config.gradient_accumulation_steps:
        raise InputError(
            f"--max_prompt_length {config.max_prompt_length} leaves {len(fitting)} of {len(problems)} problems, "
            f"a step needs {config.gradient_accumulation_steps}; raise it"
        )
    if len(fitting) < len(problems):
        say(f"left out {len(problems) - len(fitting)} problems whose prompt has more than {config.max_prompt_length} tokens")
    return fitting
