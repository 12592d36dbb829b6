"""trl's GRPOTrainer as oracle: the same token ids and rewards must give the same loss and the same gradients."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_pipeline import saved, tokenizer, untrained

from steerlift.records.types import Completion, Grade, GradedProblem, Problem
from steerlift.scoring.rewards import reward
from steerlift.steering.models import load_model
from steerlift.training.batch import StepBatch
from steerlift.training.config import TrainConfig
from steerlift.training.metrics import TokenTotals
from steerlift.training.policy_loss import batch_logprobs, our_loss

pytestmark = pytest.mark.e2e


PROBLEMS, GROUP, LONGEST = 3, 4, 16
RIGHT, WRONG, UNFORMATTED = Grade("7", True, True, True), Grade("3", True, False, False), Grade(None, False, False, False)
# A group with two rewards, one with three, and one without signal.
GRADES = (
    (RIGHT, WRONG, WRONG, RIGHT),
    (UNFORMATTED, WRONG, RIGHT, WRONG),
    (WRONG, WRONG, WRONG, WRONG),
)
OPTIONS = [
    {"loss_type": loss, "scale_rewards": scale, "beta": beta, "temperature": temperature}
    for loss, scale, (beta, temperature) in itertools.product(
        ("dr_grpo", "grpo", "bnpo"), (False, True), ((0.0, 1.0), (0.04, 0.7))
    )
]
# Updates after the first of a batch: the policy has moved since it sampled.
LATER_UPDATES = [{**options, "num_iterations": 2, "epsilon_high": 0.3} for options in OPTIONS if not options["scale_rewards"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """The model that training starts from: the reference."""
    return saved(tmp_path_factory.mktemp("reference") / "model", untrained())


@pytest.fixture(scope="module")
def graded() -> tuple[list[tuple[int, ...]], list[GradedProblem]]:
    """Prompts, and completions of random ids and lengths."""
    generator = torch.Generator().manual_seed(0)

    def ids(least: int, most: int) -> tuple[int, ...]:
        count = int(torch.randint(least, most + 1, (1,), generator=generator))
        return tuple(torch.randint(4, len(tokenizer()), (count,), generator=generator).tolist())

    prompts = [ids(2, 9) for _ in range(PROBLEMS)]
    problems = [
        GradedProblem(
            Problem("p", "7"), "p", tuple(Completion(ids(1, LONGEST), (), "", truncated=False) for _ in range(GROUP)), grades
        )
        for grades in GRADES
    ]
    return prompts, problems


def policy_and_reference(folder: str):
    """A policy that has moved away from where it started, so that the KL is not 0."""
    policy, reference = (load_model(folder, torch.device("cpu"), torch.float32) for _ in range(2))
    return policy, reference.requires_grad_(False)


def move(policy, seed: int = 1, far: float = 0.1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(far * parameter.std() * torch.randn(parameter.shape, generator=generator))
    return policy


def gradients_of(policy, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    policy.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in policy.named_parameters()}


def batch_of(graded, options, keep_all: bool | None = None) -> StepBatch:
    rewards_PG = torch.tensor([[reward(grade) for grade in g.grades] for g in graded[1]])
    return StepBatch.build(
        *graded,
        rewards_PG,
        options["loss_type"],
        LONGEST,
        options["scale_rewards"],
        keep_all=bool(options["beta"]) if keep_all is None else keep_all,
    )


def ours(policy, reference, graded, options, old=None) -> tuple[torch.Tensor, float]:
    """Our loss, and the share of tokens that the clip left without a gradient."""
    config = TrainConfig(max_completion_length=LONGEST, **options)
    loss = our_loss(config)
    batches = batch_of(graded, options).micro_batches(GROUP, torch.device("cpu"))
    for name, model in (("reference_logprobs_N", reference if config.beta else None), ("old_logprobs_N", old)):
        if model is not None:
            batches = [replace(batch, **{name: batch_logprobs(model, batch, config.temperature)}) for batch in batches]
    totals = TokenTotals()
    results = [loss(policy, batch) for batch in batches]
    for batch, result in zip(batches, results, strict=True):
        totals.add(batch, result, config)
    tokens = sum(len(batch.targets_N) for batch in batches)
    clipped = totals.means(totals.sums, config)["clip_rate"] * tokens
    # Groups without signal, which we may leave out, clip nothing.
    everything = sum(len(c.token_ids) for problem in graded[1] for c in problem.completions)
    return torch.stack([result.loss for result in results]).sum(), clipped / everything


def naive(policy, reference, graded, options) -> torch.Tensor:
    """By the formulas, one completion at a time, all logits at once, in float64 from the logits on."""
    prompts, problems = graded

    def logprobs(model, prompt, completion):
        logits = model(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1].double()
        return (logits / options["temperature"]).log_softmax(-1).gather(1, torch.tensor(completion)[:, None]).squeeze(1)

    tokens = sum(len(c.token_ids) for problem in problems for c in problem.completions)
    total = torch.zeros((), dtype=torch.float64)
    for prompt, problem in zip(prompts, problems, strict=True):
        rewards = torch.tensor([reward(grade) for grade in problem.grades], dtype=torch.float64)
        advantages = rewards - rewards.mean()
        if options["scale_rewards"]:
            advantages = advantages / (rewards.std() + 1e-4)
        for advantage, completion in zip(advantages, problem.completions, strict=True):
            new = logprobs(policy, prompt, completion.token_ids)
            losses = -(new - new.detach()).exp() * advantage
            if options["beta"]:
                difference = logprobs(reference, prompt, completion.token_ids) - new
                losses = losses + options["beta"] * (difference.exp() - difference - 1)
            denominator = {
                "dr_grpo": PROBLEMS * GROUP * LONGEST,
                "grpo": PROBLEMS * GROUP * len(completion.token_ids),
                "bnpo": tokens,
            }[options["loss_type"]]
            total = total + losses.sum() / denominator
    return total


def trls(policy, graded, options, output_dir: Path) -> tuple[torch.Tensor, float]:
    """trl's loss and share of clipped tokens, with its own advantages, masks, reference and old logprobs, on our completions
    and rewards. With several updates of a batch: of the second, after the policy has moved."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    prompts, problems = graded
    rewards = [reward(grade) for problem in problems for grade in problem.grades]

    def rollout(_prompts, _trainer):
        return {
            "prompt_ids": [list(prompt) for prompt in prompts for _ in range(GROUP)],
            "completion_ids": [list(c.token_ids) for problem in problems for c in problem.completions],
            "logprobs": None,
        }

    trainer = GRPOTrainer(
        policy,
        reward_funcs=lambda **_: rewards,
        args=GRPOConfig(
            output_dir=str(output_dir),
            report_to=[],
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            per_device_train_batch_size=PROBLEMS * GROUP,
            num_generations=GROUP,
            max_completion_length=LONGEST,
            # trl's default multiplies the KL by the ratio: the same value, another gradient than the published GRPO's.
            use_bias_correction_kl=False,
            **{**options, "scale_rewards": "group" if options["scale_rewards"] else "none"},
        ),
        train_dataset=Dataset.from_dict({"prompt": ["p"] * PROBLEMS * GROUP}),
        processing_class=tokenizer(),
        rollout_func=rollout,
    )
    move(policy)
    policy.train()
    trainer.current_gradient_accumulation_steps = 1
    inputs = trainer._generate_and_score_completions([{"prompt": "p"}] * PROBLEMS * GROUP)
    if options.get("num_iterations", 1) > 1:
        move(policy, seed=2, far=0.5)
    loss = trainer.compute_loss(policy, inputs)
    (share,) = trainer._metrics["train"]["clip_ratio/region_mean"]
    return loss, share


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float = 1e-6) -> None:
    """The gradients as a whole agree to `tolerance` of their norm, and no single parameter's hides a difference in that."""
    assert list(one) == list(other)
    for name, gradient in other.items():
        assert float(gradient.norm()) > 0, name
        assert float((one[name] - gradient).norm() / gradient.norm()) < 5 * tolerance, name
    whole, expected = (torch.cat([gradient.flatten() for gradient in side.values()]) for side in (one, other))
    assert float((whole - expected).norm() / expected.norm()) < tolerance


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(map(str, options.values())))
def test_loss_and_gradients_are_trls(folder, graded, options, tmp_path, monkeypatch):
    # rollout_func is how trl is given our completions; it warns that this may change.
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    policy, reference = policy_and_reference(folder)
    their_loss, _ = trls(policy, graded, options, tmp_path)
    theirs = gradients_of(policy, their_loss)
    our, _ = ours(policy, reference, graded, options)
    assert our.item() == pytest.approx(their_loss.item(), rel=1e-6, abs=1e-7)
    assert_same(gradients_of(policy, our), theirs)


@pytest.mark.parametrize("options", LATER_UPDATES, ids=lambda options: "-".join(map(str, options.values())))
def test_later_updates_of_a_batch_are_trls_too(folder, graded, options, tmp_path, monkeypatch):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    policy, reference = policy_and_reference(folder)
    old = move(load_model(folder, torch.device("cpu"), torch.float32))
    their_loss, their_share = trls(policy, graded, options, tmp_path)
    theirs = gradients_of(policy, their_loss)
    our, our_share = ours(policy, reference, graded, options, old)
    # Two logprobs are rounded here, and their difference goes into an exponential.
    assert 0.1 < their_share < 0.9
    assert our_share == pytest.approx(their_share, abs=1e-6)
    assert our.item() == pytest.approx(their_loss.item(), rel=1e-5, abs=1e-6)
    assert_same(gradients_of(policy, our), theirs, tolerance=5e-6)


@pytest.mark.parametrize("options", OPTIONS[1::2], ids=lambda options: "-".join(map(str, options.values())))
def test_loss_and_gradients_are_those_of_the_formulas(folder, graded, options):
    policy, reference = policy_and_reference(folder)
    move(policy)
    expected = naive(policy, reference, graded, options)
    our, _ = ours(policy, reference, graded, options)
    assert our.item() == pytest.approx(expected.item(), rel=1e-6, abs=1e-7)
    assert_same(gradients_of(policy, our), gradients_of(policy, expected))
