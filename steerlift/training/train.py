"""`steerlift train`: loads what a run needs, warms up if asked, and hands over to the trainer."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

import torch

from steerlift.problems.load import load_problems, load_worked_examples
from steerlift.problems.prompt import encode_prompt, few_shot_note
from steerlift.records.errors import InputError
from steerlift.records.progress import progress, say
from steerlift.records.runs import read_json
from steerlift.records.types import Problem
from steerlift.sampling.draws import row_seed
from steerlift.sampling.server import Patience
from steerlift.scoring.plugins import load_reward
from steerlift.steering.models import (
    Model,
    Tokenizer,
    choose_attention,
    choose_device,
    load_model,
    load_tokenizer,
)
from steerlift.steering.precision import Precision, choose_precision
from steerlift.training.checkpoints import (
    adapter_path,
    checkpoint_path,
    load_training_state,
    resumable_step,
    save_checkpoint,
    saved_steps,
)
from steerlift.training.config import TrainConfig
from steerlift.training.grpo_trainer import GrpoTrainer
from steerlift.training.learner import AdamOptions, Learner
from steerlift.training.lora import add_adapters, import_peft
from steerlift.training.memory import naming_memory
from steerlift.training.policy_loss import check_liger_head, liger_loss
from steerlift.training.policy_sampling import LocalPolicy, PolicySampler
from steerlift.training.processes import Processes, process_count
from steerlift.training.reference import Reference
from steerlift.training.run_log import RunLog, check_folder
from steerlift.training.served_policy import ServedPolicy
from steerlift.training.trackers import check_trackers
from steerlift.training.trainer import Trainer, naming_divergence
from steerlift.training.warmup import warm_up, worked_solutions

ChooseProblems = Callable[[Tokenizer], tuple[list[Problem], list[Problem]]]
"""The worked examples and the problems to train on; called once a run may begin."""


class Load(Protocol):
    """Loads the model with what is trained in it wanting gradients, as the checkpoint of step `done` has it."""

    def __call__(self, processes: Processes, precision: Precision, attention: str, done: int | None) -> Model:
        """The model, on this process's device."""


class MakeSampler(Protocol):
    """Says where the policy is sampled."""

    def __call__(
        self, learner: Learner, tokenizer: Tokenizer, few_shot: Sequence[Problem]
    ) -> AbstractContextManager[PolicySampler]:
        """A sampler of the learner's model, given back when the block is left."""


class MakeTrainer(Protocol):
    """Says what a step is."""

    def __call__(
        self, learner: Learner, tokenizer: Tokenizer, policy: PolicySampler, log: RunLog | None, reference: Reference | None
    ) -> Trainer:
        """The loop to run."""


def train(config: TrainConfig) -> Path:
    """Trains a model's weights, or adapters to them, as configured. Returns the last checkpoint."""
    rewards = [(name, load_reward(name)) for name in config.rewards]

    def trainer(
        learner: Learner, tokenizer: Tokenizer, policy: PolicySampler, log: RunLog | None, reference: Reference | None
    ) -> Trainer:
        return GrpoTrainer(config, learner, tokenizer, policy, rewards, log, reference)

    problems = partial(training_problems, config)
    return run(config, problems, partial(_load_policy, config), partial(_policy_sampler, config), trainer)


def run(
    config: TrainConfig, choose_problems: ChooseProblems, load: Load, make_sampler: MakeSampler, make_trainer: MakeTrainer
) -> Path:
    """Trains, evaluates and saves as configured; every process that takes part calls it. Returns the last checkpoint."""
    check_extras(config)
    device = choose_device(config.device)
    precision = choose_precision(config.dtype, device)
    # Before they meet: one that ends while another is still connecting would break that one's connection.
    if config.gradient_accumulation_steps < process_count():
        raise InputError(
            f"--gradient_accumulation_steps {config.gradient_accumulation_steps} on {process_count()} processes: expected at "
            "least one problem for each, as a group stays on one; raise it"
        )
    processes = Processes(device, precision)
    check_folder(config)  # on every process: all stop at what one would
    processes.wait()  # before anything is written there
    done = _step_to_resume(config)

    tokenizer = load_tokenizer(config.model_name)
    few_shot, problems = choose_problems(tokenizer)
    held_out = load_problems(config.problems, config.eval_split, config.eval_size, config.seed, config.data_dir)
    attention = choose_attention(config.attention, processes.device)
    warming = bool(config.sft_steps) and done is None
    solutions = worked_solutions(tokenizer, problems, few_shot, config) if warming else []
    model = load(processes, precision, attention, done)
    say(f"training {config.subject} {config.model_name} ({precision}, {attention} attention, {processes})")
    say(f"on {len(problems)} problems of {config.problems}{few_shot_note(few_shot)}")
    say(f"evaluating on {len(held_out)} {config.eval_split} problems; writing to {config.output_dir}")
    if done is not None:
        say(f"resuming after step {done} of {config.num_train_iters}")

    learner = Learner(model, _adam(config), processes, precision)
    # The sampler first: a server that serves another model leaves no run behind.
    with make_sampler(learner, tokenizer, few_shot) as policy:
        log = RunLog(config, str(processes), done) if processes.main else None
        if done:  # the optimizer of a warmed-up model is new
            learner.load_optimizer_state(load_training_state(config.output_dir, done))
        elif warming:
            with naming_divergence("warm-up", "--sft_learning_rate"), naming_memory("warm-up", "--micro_batch_size"):
                warm_up(learner, solutions, config)
            learner.restart(_adam(config))
            _save_start(config, learner, tokenizer)
        reference = _reference(config, learner, precision, attention) if config.beta else None
        trainer = make_trainer(learner, tokenizer, policy, log, reference)
        with progress("training", config.num_train_iters, done or 0) as bar:
            trainer.run(problems, held_out, done or 0, bar)
        if log is not None:
            log.close()
    processes.end()
    return checkpoint_path(config.output_dir, config.num_train_iters)


def training_problems(config: TrainConfig, tokenizer: Tokenizer) -> tuple[list[Problem], list[Problem]]:
    """The worked examples, and the problems to train on, whose prompts are short enough."""
    few_shot = load_worked_examples(config.problems, config.few_shot, config.seed, config.data_dir)
    drawn = load_problems(config.problems, "train", config.train_size, config.seed, config.data_dir, held_out=few_shot)
    return few_shot, _fitting(drawn, tokenizer, few_shot, config)


def check_extras(config: TrainConfig) -> None:
    """Raises MissingDependencyError for an option whose package is not installed, before anything is loaded or written."""
    if config.use_vllm and config.vllm_host not in ("localhost", "127.0.0.1"):
        raise InputError(
            f"--vllm_host {config.vllm_host}: weights reach the server through this machine's memory; start it here"
        )
    if config.use_liger:
        liger_loss(config)
    if config.lora_r:
        import_peft()
    check_trackers(config.use_wandb, config.use_trackio)


def _step_to_resume(config: TrainConfig) -> int | None:
    """The step of the checkpoint to go on from, 0 for that of the warm-up; None for a run from the beginning."""
    if not config.resume:
        return None
    done = resumable_step(config.output_dir)
    if done is None:
        if any(saved_steps(config.output_dir)):  # step 0 is the warmed-up model, which holds none
            raise InputError(f"--resume: no checkpoint in {config.output_dir} holds the optimizer's state; pass --overwrite")
        if _is_warmed_up(config.output_dir):
            return 0
        say(f"no checkpoint in {config.output_dir} yet: starting from the beginning")
    elif done > config.num_train_iters:
        raise InputError(f"--num_train_iters {config.num_train_iters}: {config.output_dir} is at step {done} already; raise it")
    return done


def _is_warmed_up(output_dir: Path) -> bool:
    """Whether the warm-up and the evaluation after it are done; a kill between the two has both made again."""
    summary = output_dir / "eval_summary.json"
    return checkpoint_path(output_dir, 0).is_dir() and summary.is_file() and "0" in read_json(summary)


def _fitting(problems: list[Problem], tokenizer: Tokenizer, few_shot: Sequence[Problem], config: TrainConfig) -> list[Problem]:
    if len(problems) < config.gradient_accumulation_steps:
        raise InputError(
            f"--gradient_accumulation_steps {config.gradient_accumulation_steps}: {config.problems} has {len(problems)} "
            "training problems, a step cannot take more; lower it"
        )
    fitting = [p for p in problems if len(encode_prompt(tokenizer, p.problem, few_shot=few_shot)) <= config.max_prompt_length]
    if len(fitting) < config.gradient_accumulation_steps:
        raise InputError(
            f"--max_prompt_length {config.max_prompt_length} leaves {len(fitting)} of {len(problems)} problems, "
            f"a step needs {config.gradient_accumulation_steps}; raise it"
        )
    if len(fitting) < len(problems):
        say(f"left out {len(problems) - len(fitting)} problems whose prompt has more than {config.max_prompt_length} tokens")
    return fitting


def _load_policy(config: TrainConfig, processes: Processes, precision: Precision, attention: str, done: int | None) -> Model:
    checkpoint = None if done is None else checkpoint_path(config.output_dir, done)
    start = config.model_name if checkpoint is None or config.lora_r else str(checkpoint)
    model = load_model(start, processes.device, precision.weights, attention)
    if config.use_liger:
        check_liger_head(model)
    if config.lora_r:
        saved = None if checkpoint is None else adapter_path(checkpoint)
        torch.manual_seed(row_seed(config.seed))  # new adapters start at random, on every process the same
        model = add_adapters(model, config.lora_r, config.lora_alpha, saved)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


@contextmanager
def _policy_sampler(
    config: TrainConfig, learner: Learner, tokenizer: Tokenizer, few_shot: Sequence[Problem]
) -> Iterator[PolicySampler]:
    if not config.use_vllm:
        yield LocalPolicy(learner, tokenizer, few_shot, config.batch_rows)
        return
    served = ServedPolicy(learner, tokenizer, config.vllm_port, few_shot, Patience(server=config.vllm_patience))
    try:
        yield served
    finally:
        served.close()


def _adam(config: TrainConfig) -> AdamOptions:
    betas = (config.adam_beta1, config.adam_beta2)
    return AdamOptions(config.learning_rate, betas, config.weight_decay, config.max_grad_norm)


def _save_start(config: TrainConfig, learner: Learner, tokenizer: Tokenizer) -> None:
    """checkpoint_step_0: the warmed-up model, the base that vectors will steer. GRPO starts with a new optimizer."""
    weights = learner.weights()
    if learner.processes.main:
        save_checkpoint(checkpoint_path(config.output_dir, 0), learner.model, tokenizer, weights)
    learner.processes.wait()


def _reference(config: TrainConfig, learner: Learner, precision: Precision, attention: str) -> Reference:
    if config.lora_r and not config.sft_steps:
        return Reference(learner)
    start = str(checkpoint_path(config.output_dir, 0)) if config.sft_steps else config.model_name
    with learner.processes.reading_weights():
        return Reference(learner, load_model(start, learner.processes.device, precision.weights, attention))
