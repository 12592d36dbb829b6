"""Truncated importance sampling: trl's correction of what vLLM sampled as oracle, and the formula token by token."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_pipeline import tokenizer, untrained

from steerlift.records.types import Completion, Grade, GradedProblem, Problem
from steerlift.scoring.rewards import reward
from steerlift.training.batch import MicroBatch, StepBatch
from steerlift.training.config import TrainConfig
from steerlift.training.grpo import importance_weights
from steerlift.training.metrics import TokenTotals
from steerlift.training.policy_loss import batch_logprobs, our_loss

PROBLEMS, GROUP, LONGEST = 3, 4, 16
CAP = 1.3
RIGHT, WRONG, UNFORMATTED = Grade("7", True, True, True), Grade("3", True, False, False), Grade(None, False, False, False)
GRADES = ((RIGHT, WRONG, WRONG, RIGHT), (UNFORMATTED, WRONG, RIGHT, WRONG), (WRONG, RIGHT, WRONG, WRONG))


@pytest.fixture(scope="module")
def sampled() -> tuple[list[tuple[int, ...]], list[GradedProblem]]:
    """Prompts, and completions of random ids and lengths with the logprobs that another policy gave them."""
    generator = torch.Generator().manual_seed(0)
    other = move(untrained(), seed=3, far=0.3)

    def ids(least: int, most: int) -> tuple[int, ...]:
        count = int(torch.randint(least, most + 1, (1,), generator=generator))
        return tuple(torch.randint(4, len(tokenizer()), (count,), generator=generator).tolist())

    prompts = [ids(2, 9) for _ in range(PROBLEMS)]
    problems = []
    for prompt, grades in zip(prompts, GRADES, strict=True):
        completions = [ids(1, LONGEST) for _ in range(GROUP)]
        kept = tuple(Completion(c, tuple(logprobs(other, prompt, c).tolist()), "", truncated=False) for c in completions)
        problems.append(GradedProblem(Problem("p", "7"), "p", kept, grades))
    return prompts, problems


def move(policy, seed: int, far: float):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(far * parameter.std() * torch.randn(parameter.shape, generator=generator))
    return policy


def logprobs(model, prompt, completion, temperature: float = 1.0) -> torch.Tensor:
    logits = model(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1].double()
    return (logits / temperature).log_softmax(-1).gather(1, torch.tensor(completion)[:, None]).squeeze(1)


def gradients_of(policy, loss: torch.Tensor) -> torch.Tensor:
    policy.zero_grad()
    loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in policy.parameters()])


def micro_batches(sampled) -> list[MicroBatch]:
    rewards_PG = torch.tensor([[reward(grade) for grade in g.grades] for g in sampled[1]])
    return StepBatch.build(*sampled, rewards_PG, "dr_grpo", LONGEST).micro_batches(GROUP, torch.device("cpu"))


def ours(policy, sampled, old=None, **options) -> tuple[torch.Tensor, dict[str, float | None]]:
    """Our loss and the step's metrics."""
    config = TrainConfig(max_completion_length=LONGEST, **{"temperature": 1.0, "use_vllm": True, **options})
    batches = micro_batches(sampled)
    if old is not None:
        batches = [replace(batch, old_logprobs_N=batch_logprobs(old, batch, config.temperature)) for batch in batches]
    results = [our_loss(config)(policy, batch) for batch in batches]
    totals = TokenTotals()
    for batch, result in zip(batches, results, strict=True):
        totals.add(batch, result, config)
    return torch.stack([result.loss for result in results]).sum(), totals.means(totals.sums, config)


def by_hand(policy, sampled, cap: float, old=None) -> tuple[torch.Tensor, float, float]:
    """Dr. GRPO's loss, the mean |gap| and the share of capped tokens, one completion at a time, in float64."""
    total, gaps, capped = torch.zeros((), dtype=torch.float64), [], []
    for prompt, problem in zip(*sampled, strict=True):
        rewards = torch.tensor([reward(grade) for grade in problem.grades], dtype=torch.float64)
        for advantage, completion in zip(rewards - rewards.mean(), problem.completions, strict=True):
            new = logprobs(policy, prompt, completion.token_ids)
            before = new.detach() if old is None else logprobs(old, prompt, completion.token_ids).detach()
            there = torch.tensor(completion.logprobs, dtype=torch.float64)
            ratio = (new - before).exp()
            losses = -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
            importance = (before - there).exp()
            gaps += (before - there).abs().tolist()
            capped += (importance > cap).tolist()
            total = total + (losses * (importance.clamp(max=cap) if cap else 1.0)).sum() / (PROBLEMS * GROUP * LONGEST)
    return total, sum(gaps) / len(gaps), sum(capped) / len(capped)


def trls(policy, sampled, correct: bool, output_dir: Path) -> torch.Tensor:
    """trl's loss, as if its vLLM had sampled our completions with our logprobs."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    prompts, problems = sampled
    completions = [completion for problem in problems for completion in problem.completions]

    def rollout(_prompts, _trainer):
        return {
            "prompt_ids": [list(prompt) for prompt in prompts for _ in range(GROUP)],
            "completion_ids": [list(completion.token_ids) for completion in completions],
            "logprobs": [list(completion.logprobs) for completion in completions],
        }

    trainer = GRPOTrainer(
        policy,
        reward_funcs=lambda **_: [reward(grade) for problem in problems for grade in problem.grades],
        args=GRPOConfig(
            output_dir=str(output_dir),
            report_to=[],
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            per_device_train_batch_size=PROBLEMS * GROUP,
            num_generations=GROUP,
            max_completion_length=LONGEST,
            temperature=1.0,
            loss_type="dr_grpo",
            scale_rewards="none",
            vllm_importance_sampling_correction=correct,
            vllm_importance_sampling_mode="token_truncate",
            vllm_importance_sampling_clip_max=CAP,
        ),
        train_dataset=Dataset.from_dict({"prompt": ["p"] * PROBLEMS * GROUP}),
        processing_class=tokenizer(),
        rollout_func=rollout,
    )
    # Only now: asked for earlier it would look for a server, which nothing here is sampled by.
    trainer.use_vllm, trainer._last_loaded_step = True, trainer.state.global_step
    policy.train()
    trainer.current_gradient_accumulation_steps = 1
    inputs = trainer._generate_and_score_completions([{"prompt": "p"}] * PROBLEMS * GROUP)
    assert ("importance_sampling_ratio" in inputs) == correct
    return trainer.compute_loss(policy, inputs)


@pytest.mark.e2e
@pytest.mark.parametrize("cap", [CAP, 0.0], ids=["corrected", "not corrected"])
def test_loss_and_gradients_are_trls(sampled, cap, tmp_path, monkeypatch):
    # rollout_func is how trl is given our completions; it warns that this may change.
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    policy = untrained()
    theirs = trls(policy, sampled, bool(cap), tmp_path)
    expected = gradients_of(policy, theirs)
    our, _ = ours(policy, sampled, importance_cap=cap)
    assert our.item() == pytest.approx(theirs.item(), rel=1e-5, abs=1e-7)
    assert float((gradients_of(policy, our) - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize("cap", [CAP, 1.1, 0.0])
@pytest.mark.parametrize("later", [False, True], ids=["first update", "later update"])
def test_loss_gradients_and_metrics_are_those_of_the_formula(sampled, cap, later):
    old = untrained() if later else None
    policy = move(untrained(), seed=2, far=0.2) if later else untrained()
    expected, gap, capped = by_hand(policy, sampled, cap, old)
    gradients = gradients_of(policy, expected)
    our, means = ours(policy, sampled, old, importance_cap=cap)
    assert our.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-7)
    assert float((gradients_of(policy, our) - gradients).norm() / gradients.norm()) < 1e-5
    if later:  # the gap was taken at the first update
        assert means["logprob_gap"] is None
    else:
        assert gap > 0.1
        assert means["logprob_gap"] == pytest.approx(gap, rel=1e-4)
        assert means["importance_capped_rate"] == pytest.approx(capped if cap else 0.0)
        assert not cap or 0 < capped < 1


def test_the_correction_matters_and_is_for_served_runs_alone(sampled):
    policy = untrained()
    corrected, plain, local = (
        gradients_of(policy, ours(policy, sampled, **options)[0])
        for options in ({"importance_cap": CAP}, {"importance_cap": 0.0}, {"importance_cap": CAP, "use_vllm": False})
    )
    assert torch.equal(plain, local)
    assert float((corrected - plain).norm() / plain.norm()) > 0.05


def test_weights_are_capped_above_only_and_carry_no_gradient():
    here_N = torch.log(torch.tensor([0.5, 0.1, 0.9])).requires_grad_()
    weights_N = importance_weights(here_N, torch.log(torch.tensor([0.25, 0.5, 0.1])), 1.5)
    assert weights_N.tolist() == pytest.approx([1.5, 0.2, 1.5])
    assert not weights_N.requires_grad


def test_a_sampler_that_agrees_needs_no_correction(sampled):
    prompts, problems = sampled
    policy = untrained()
    same = [
        replace(
            problem,
            completions=tuple(
                replace(c, logprobs=tuple(logprobs(policy, prompt, c.token_ids).tolist())) for c in problem.completions
            ),
        )
        for prompt, problem in zip(prompts, problems, strict=True)
    ]
    (one, means), (other, _) = (ours(policy, (prompts, same), importance_cap=cap) for cap in (CAP, 0.0))
    assert means["logprob_gap"] < 1e-6
    assert means["importance_capped_rate"] == 0.0
    assert one.item() == pytest.approx(other.item(), rel=1e-6)
