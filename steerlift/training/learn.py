"""`steerlift learn`: steering vectors by gradient descent, with the trainer that trains weights."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from steerlift.extraction.activations import TokenSequence, mean_activations
from steerlift.problems.prompt import encode_prompt
from steerlift.problems.separation import fingerprints
from steerlift.records.errors import InputError
from steerlift.records.progress import say
from steerlift.records.provenance import package_version
from steerlift.records.runs import completions_path, replacing
from steerlift.records.seen import SEEN, together
from steerlift.records.types import Problem
from steerlift.sampling.kept import KeptCompletions, earlier_completions, sampling_settings
from steerlift.sampling.rollouts import SampledProblem
from steerlift.sampling.sampler import SamplingOptions
from steerlift.sampling.server import Patience
from steerlift.scoring.plugins import load_reward
from steerlift.steering.apply import check_fit
from steerlift.steering.layer_ranges import parse_layers
from steerlift.steering.models import (
    Model,
    Tokenizer,
    architecture,
    check_same_architecture,
    choose_device,
    hidden_size,
    load_config,
    load_model,
    text_config,
)
from steerlift.steering.precision import Precision, choose_precision
from steerlift.steering.trainable import TrainableVectors, scale_of, trainable_vectors
from steerlift.steering.vectors import SteeringVectors
from steerlift.training.checkpoints import checkpoint_path, vectors_path
from steerlift.training.distill import DistillTrainer, finetuned_examples
from steerlift.training.grpo_trainer import GrpoTrainer
from steerlift.training.learn_config import LearnConfig
from steerlift.training.learner import Learner
from steerlift.training.policy_sampling import LocalPolicy, PolicySampler
from steerlift.training.processes import Processes
from steerlift.training.reference import Reference
from steerlift.training.run_log import COMPLETIONS_TO_LEARN_FROM, RunLog
from steerlift.training.schedule import problems_of_step
from steerlift.training.served_vectors import ServedVectors
from steerlift.training.train import run, training_problems
from steerlift.training.trainer import Trainer

# Prompts whose activations tell how large each layer's states are.
_SCALE_PROMPTS = 64


def learn(config: LearnConfig) -> SteeringVectors:
    """Learns vectors as configured and writes them to vectors.safetensors in the output folder. Returns them."""
    if config.finetuned_checkpoint is not None:
        check_same_architecture(config.model_name, config.finetuned_checkpoint)
    learning = _Learning(config)
    checkpoint = run(config, learning.choose_problems, learning.load, learning.sampler, learning.trainer)
    with replacing(learned_path(config.output_dir)) as temporary:
        shutil.copyfile(vectors_path(checkpoint), temporary)
    return SteeringVectors.load(learned_path(config.output_dir))


def learned_path(output_dir: Path) -> Path:
    """Where a run leaves its vectors."""
    return output_dir / "vectors.safetensors"


class _Learning:
    """The parts of training that are other than where weights are trained."""

    def __init__(self, config: LearnConfig) -> None:
        self.config = config
        self.rewards = [(name, load_reward(name)) for name in config.rewards]
        self.layers = parse_layers(config.layers, load_config(config.model_name).num_hidden_layers, "--layers")
        self.earlier: dict[str, SampledProblem] = {}
        self.start = None if config.start_vectors is None else SteeringVectors.load(config.start_vectors)
        if self.start is not None:
            check_fit(load_config(config.model_name), self.start, config.model_name)

    def choose_problems(self, tokenizer: Tokenizer) -> tuple[list[Problem], list[Problem]]:
        """The worked examples and the problems to learn from, kept for what follows."""
        self.tokenizer = tokenizer
        config = self.config
        self.few_shot, self.problems = training_problems(config, tokenizer)
        if config.finetuned_checkpoint is not None:
            options = SamplingOptions(config.teacher_temperature, config.max_completion_length)
            precision = str(choose_precision(config.dtype, choose_device(config.device)))
            self.sampling = sampling_settings(
                config.finetuned_checkpoint, options, config.finetuned_completions, self.few_shot, config.seed, precision
            )
            if config.reuse is not None:
                path = completions_path(config.reuse)
                self.earlier = earlier_completions(path, self.sampling, f"--reuse {config.reuse}")
        return self.few_shot, self.problems

    def load(self, processes: Processes, precision: Precision, attention: str, done: int | None) -> Model:
        """The base model with its vectors, as they began or as the checkpoint has them."""
        if processes.sharded:
            raise InputError("steerlift learn shards nothing, its vectors are small; start it without FSDP")
        model = load_model(self.config.model_name, processes.device, precision.weights, attention)
        if self.config.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        saved = None if done is None else SteeringVectors.load(vectors_path(checkpoint_path(self.config.output_dir, done)))
        vectors = self._first_vectors(model) if saved is None else TrainableVectors.resumed(saved)
        vectors.attach(model)
        return model

    @contextmanager
    def sampler(self, learner: Learner, tokenizer: Tokenizer, few_shot: Sequence[Problem]) -> Iterator[PolicySampler]:
        """The base steered by the vectors, here or on a server."""
        config = self.config
        vectors = trainable_vectors(learner.model)
        if not config.use_vllm or vectors is None:
            yield LocalPolicy(learner, tokenizer, few_shot, config.batch_rows)
            return
        patience = Patience(server=config.vllm_patience)
        served = ServedVectors(learner, vectors, config.model_name, tokenizer, config.vllm_port, few_shot, patience)
        try:
            yield served
        finally:
            served.close()

    def trainer(
        self, learner: Learner, tokenizer: Tokenizer, policy: PolicySampler, log: RunLog | None, reference: Reference | None
    ) -> Trainer:
        """The loop of the objective."""
        config = self.config
        if config.finetuned_checkpoint is None:
            return GrpoTrainer(config, learner, tokenizer, policy, self.rewards, log, reference)
        attention = learner.model.config._attn_implementation
        finetuned = load_model(config.finetuned_checkpoint, learner.processes.device, learner.precision.weights, attention)
        finetuned.requires_grad_(False)
        # All that the steps will take, each once: the first of the seeded order, or every problem of it.
        count = config.num_train_iters * config.gradient_accumulation_steps
        needed = _distinct(problems_of_step(self.problems, 1, count, config.seed))
        if log is None:  # the process that writes has sampled them all
            learner.processes.wait()
        kept = KeptCompletions.open(config.output_dir / COMPLETIONS_TO_LEARN_FROM, self.sampling)
        if self.earlier:
            say(f"{kept.take_over(self.earlier, needed)} completions are those of {config.reuse}")
        with learner.precision.without_gradients(finetuned, learner.processes.device):
            examples = finetuned_examples(finetuned, tokenizer, needed, self.few_shot, config, kept)
        if log is not None:
            learner.processes.wait()
        return DistillTrainer(config, learner, tokenizer, policy, log, finetuned, examples)

    def _first_vectors(self, model: Model) -> TrainableVectors:
        size = hidden_size(model)
        start = {layer: torch.zeros(size) for layer in self.layers}
        if self.start is not None:
            given = {layer: vector for layer, vector in self.start.layers.items() if layer in start}
            if not given:
                raise InputError(f"--start_vectors {self.config.start_vectors}: none of their layers is in --layers")
            start |= {layer: self.config.start_weight * vector for layer, vector in given.items()}
        return TrainableVectors(start, self._scales(model), self._metadata(model))

    def _scales(self, model: Model) -> dict[int, float]:
        chosen = self.problems[:_SCALE_PROMPTS]
        prompts = [encode_prompt(self.tokenizer, problem.problem, few_shot=self.few_shot) for problem in chosen]
        norms = mean_activations(model, [TokenSequence(tuple(ids), len(ids)) for ids in prompts], "prompt").norm_L
        return {layer: scale_of(float(norms[layer]), hidden_size(model)) for layer in self.layers}

    def _metadata(self, model: Model) -> dict[str, str]:
        config, problems = self.config, self.problems
        before = {} if self.start is None else dict(self.start.metadata)
        start = "" if self.start is None else f", from {before.get('method', 'vectors')} x {config.start_weight:g}"
        return {
            "base_model": config.model_name,
            "finetuned_model": config.finetuned_checkpoint or "",
            "architecture": architecture(text_config(model)),
            "method": f"learned by {config.objective}{start}",
            "tokens": "all",
            "problems": f"{len(problems)} of {config.problems}, train",
            "few_shot": str(config.few_shot),
            "seed": str(config.seed),
            "steerlift": package_version(),
            SEEN: together(fingerprints(problems), before.get(SEEN, "")),
        }


def _distinct(problems: Sequence[Problem]) -> list[Problem]:
    return list({problem.problem: problem for problem in problems}.values())
