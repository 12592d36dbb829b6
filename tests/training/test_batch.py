from itertools import chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import VOCABULARY, random_prompts, tiny_model

from steerlift.records.types import Completion, Grade, GradedProblem, Problem
from steerlift.training.batch import MicroBatch, StepBatch, pack
from steerlift.training.config import TrainConfig
from steerlift.training.policy_loss import our_loss

CPU = torch.device("cpu")
RIGHT, WRONG, UNFORMATTED = Grade("7", True, True, True), Grade("3", True, False, False), Grade(None, False, False, False)
REWARDS = {RIGHT: 1.2, WRONG: 0.2, UNFORMATTED: -0.5}
LIMIT = 12

ids = st.lists(st.integers(3, VOCABULARY - 1), min_size=1, max_size=6).map(tuple)
groups = st.lists(st.lists(st.tuples(ids, st.sampled_from(list(REWARDS))), min_size=3, max_size=3), min_size=1, max_size=4)


def graded(completions: list[tuple[int, ...]], grades: list[Grade]) -> GradedProblem:
    records = tuple(Completion(c, (), "", truncated=False) for c in completions)
    return GradedProblem(Problem("p", "7"), "p", records, tuple(grades))


def random_step(problems: int, group: int, no_signal: int = 0) -> tuple[list[tuple[int, ...]], list[GradedProblem]]:
    """Prompts and graded completions of many lengths; the first `no_signal` groups have equal rewards."""
    prompts = random_prompts(*torch.randint(1, 9, (problems,)).tolist())
    answered = []
    for problem in range(problems):
        completions = random_prompts(*torch.randint(1, LIMIT + 1, (group,)).tolist())
        mixed = [RIGHT, UNFORMATTED, *[list(REWARDS)[i] for i in torch.randint(0, 3, (group - 2,)).tolist()]]
        answered.append(graded(completions, [WRONG] * group if problem < no_signal else mixed))
    return prompts, answered


def build(step, loss_type="dr_grpo", scale_rewards=False, keep_all=False, mask_truncated=False) -> StepBatch:
    rewards_PG = torch.tensor([[REWARDS[grade] for grade in g.grades] for g in step[1]])
    return StepBatch.build(*step, rewards_PG, loss_type, LIMIT, scale_rewards, mask_truncated, keep_all)


@pytest.fixture
def double(family):
    """A model in float64: what differs then differs by more than the rounding of its random layers."""
    return family.double()


def gradient(model, batches: list[MicroBatch], loss_type="dr_grpo") -> tuple[float, torch.Tensor]:
    """The summed loss of the micro-batches and the gradient with respect to every parameter, as one vector."""
    model.zero_grad()
    loss = our_loss(TrainConfig(loss_type=loss_type, max_completion_length=LIMIT))
    total = 0.0
    for batch in batches:
        part, logprobs, entropies = loss(model, batch)
        part.backward()
        total += part.item()
        assert len(logprobs) == len(entropies) == len(batch.targets_N)
    return total, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def assert_same_gradient(one: tuple[float, torch.Tensor], other: tuple[float, torch.Tensor], tolerance: float = 5e-7) -> None:
    assert float(other[1].norm()) > 0
    assert one[0] == pytest.approx(other[0], rel=1e-6, abs=1e-7)
    assert float((one[1] - other[1]).norm() / other[1].norm()) < tolerance


def rows_of(micro: MicroBatch) -> list[tuple[int, ...]]:
    """Each row's prompt and completion, read off the tensors."""
    prompts = [ids[mask.bool()].tolist() for ids, mask in zip(micro.prompts_DS, micro.prompt_mask_DS, strict=True)]
    completions = [ids[mask].tolist() for ids, mask in zip(micro.completions_RT, micro.mask_RT, strict=True)]
    return [(*prompts[d], *c) for d, c in zip(micro.prompt_of_row_R.tolist(), completions, strict=True)]


@settings(deadline=None, max_examples=50)
@given(groups, st.integers(1, 5), st.booleans())
def test_micro_batches_hold_every_row_with_signal_once(step, rows, keep_all):
    prompts = [tuple(range(3, 4 + number)) for number in range(len(step))]
    batch = build((prompts, [graded([c for c, _ in group], [g for _, g in group]) for group in step]), keep_all=keep_all)
    assert torch.allclose(batch.rewards_PG, torch.tensor([[REWARDS[grade] for _, grade in group] for group in step]))
    kept = [len({grade for _, grade in group}) > 1 or keep_all for group in step]
    assert batch.kept_P.tolist() == kept

    expected = sorted((*prompts[p], *c) for p, group in enumerate(step) for c, _ in group if kept[p])
    seen = []
    batches = batch.micro_batches(rows, CPU)
    for micro in batches:
        assert len(micro.completions_RT) <= rows
        seen += rows_of(micro)
    assert sorted(seen) == expected
    assert len(batches) == -(-len(expected) // rows)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(ids, ids), min_size=1, max_size=5), st.booleans())
def test_packing_is_what_loops_give(pairs, same_prompt):
    prompts, completions = zip(*pairs, strict=True)
    prompts = [prompts[0]] * len(pairs) if same_prompt else prompts
    advantages = torch.arange(1.0, len(pairs) + 1)
    weights = torch.rand(len(pairs), 8)
    micro = pack(prompts, completions, advantages, weights, CPU)
    assert rows_of(micro) == [(*prompt, *completion) for prompt, completion in zip(prompts, completions, strict=True)]
    assert len(micro.prompts_DS) == len(set(prompts))
    assert micro.prompt_mask_DS[:, -1].all()  # padded on the left
    assert micro.targets_N.tolist() == [token for completion in completions for token in completion]
    assert micro.advantages_N.tolist() == [advantages[row].item() for row, c in enumerate(completions) for _ in c]
    assert micro.weights_N.tolist() == [
        weights[row, place].item() for row, c in enumerate(completions) for place in range(len(c))
    ]


def test_a_step_lays_its_tensors_out_by_problem_and_completion():
    step = ([(5, 6), (7,)], [graded([(1,), (2, 3)], [RIGHT, WRONG]), graded([(4, 5, 6), (7,)], [WRONG, WRONG])])
    batch = build(step)
    assert batch.prompts == [(5, 6), (5, 6), (7,), (7,)]
    assert batch.completions == [(1,), (2, 3), (4, 5, 6), (7,)]
    torch.testing.assert_close(batch.advantages_B, torch.tensor([0.5, -0.5, 0.0, 0.0]))
    assert batch.kept_P.tolist() == [True, False]
    torch.testing.assert_close(batch.weights_BT * 4 * LIMIT, torch.tensor([[1.0, 0, 0], [1, 1, 0], [1, 1, 1], [1, 0, 0]]))
    scaled = build(step, scale_rewards=True).advantages_B
    # The deviation of two rewards a distance d apart is d / sqrt(2).
    torch.testing.assert_close(scaled, torch.tensor([1.0, -1.0, 0.0, 0.0]) * 0.5 / (0.5**0.5 + 1e-4))


def assert_cutting_changes_nothing(model, loss_type: str) -> None:
    batch = build(random_step(4, 8), loss_type)
    whole = gradient(model, batch.micro_batches(32, CPU), loss_type)
    for rows, count in ((8, 4), (1, 32)):
        parts = batch.micro_batches(rows, CPU)
        assert len(parts) == count
        assert_same_gradient(gradient(model, parts, loss_type), whole)


def test_one_batch_of_32_equals_4_of_8_and_32_of_1(double):
    assert_cutting_changes_nothing(double, "dr_grpo")


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo"])
def test_the_same_under_the_other_losses(qwen2, loss_type):
    assert_cutting_changes_nothing(qwen2.double(), loss_type)


def test_a_longer_row_beside_the_others_changes_nothing(double):
    prompts, completions = random_prompts(3, 5), random_prompts(4, 7)
    advantages, weights = torch.tensor([0.7, -0.4]), torch.rand(2, 30)
    alone = gradient(double, [pack(prompts, completions, advantages, weights, CPU)])
    long_prompt, long_completion = random_prompts(8, 30)
    padded = pack(
        [*prompts, long_prompt],
        [*completions, long_completion],
        torch.tensor([0.7, -0.4, 0.0]),  # it carries no gradient of its own
        torch.cat([weights, torch.rand(1, 30)]),
        CPU,
    )
    assert (padded.prompts_DS.shape[1], padded.completions_RT.shape[1]) == (8, 30)
    assert_same_gradient(gradient(double, [padded]), alone)


@pytest.mark.parametrize("loss_type", ["dr_grpo", "grpo", "bnpo"])
def test_skipping_groups_without_signal_gives_the_same_gradient(qwen2, loss_type):
    step = random_step(4, 4, no_signal=2)
    skipping, keeping = build(step, loss_type), build(step, loss_type, keep_all=True)
    assert skipping.kept_P.tolist() == [False, False, True, True]
    assert keeping.kept_P.all()
    assert sum(len(part.completions_RT) for part in skipping.micro_batches(4, CPU)) == 8
    model = qwen2.double()
    less, all_of_it = (gradient(model, b.micro_batches(4, CPU), loss_type) for b in (skipping, keeping))
    # The loss is the same but for groups whose advantages are 0: they add nothing to it either.
    assert_same_gradient(less, all_of_it)


def test_a_step_without_any_signal_has_no_micro_batch():
    assert build(random_step(2, 4, no_signal=2)).micro_batches(4, CPU) == []


@pytest.mark.parametrize("sharing", ["every prompt its own", "two rows of one prompt", "one prompt"])
def test_hidden_states_are_those_that_predict_each_token(double, sharing):
    """By the model alone on each row, without padding or cache: states, and gradients with respect to every parameter."""
    own = random_prompts(3, 6, 1)
    prompts = {"every prompt its own": own, "two rows of one prompt": [own[0], own[1], own[0]], "one prompt": own[:1] * 3}[
        sharing
    ]
    completions = random_prompts(5, 1, 9)
    micro = pack(prompts, completions, torch.ones(3), torch.ones(3, 9), CPU)
    body = double.get_decoder()

    def alone() -> torch.Tensor:
        rows = [(p, body(torch.tensor([[*p, *c]])).last_hidden_state[0]) for p, c in zip(prompts, completions, strict=True)]
        return torch.cat([states[len(prompt) - 1 : -1] for prompt, states in rows])

    results = []
    for states_NH in (micro.hidden(body), alone()):
        double.zero_grad()
        (states_NH * torch.linspace(-1, 1, states_NH.numel()).view_as(states_NH)).sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in double.parameters() if p.grad is not None])
        results.append((states_NH.detach(), gradient))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-6, atol=1e-6)
    # Norms and rotations are computed in float32 whatever the model's format.
    assert float((results[0][1] - results[1][1]).norm() / results[1][1].norm()) < 1e-6


def test_a_shared_prompt_is_computed_once(qwen2):
    prompts, completions = random_prompts(9), random_prompts(4, 2, 5)
    micro = pack(prompts * 3, completions, torch.ones(3), torch.ones(3, 5), CPU)
    seen = []
    with torch.no_grad():
        handle = qwen2.get_decoder().embed_tokens.register_forward_hook(lambda *call: seen.append(call[2].shape[:2]))
        micro.hidden(qwen2.get_decoder())
        handle.remove()
    assert seen == [(1, 9), (3, 4)]


def test_rows_are_ordered_so_that_fewer_tokens_are_computed():
    def computed(prompt_length: int, lengths: tuple[int, ...]) -> int:
        records = [graded(random_prompts(*lengths), [RIGHT, UNFORMATTED]) for _ in range(2)]
        batch = build((random_prompts(prompt_length, prompt_length), records))
        return sum(m.prompts_DS.numel() + m.completions_RT.numel() for m in batch.micro_batches(2, CPU))

    # Long prompts: a group's rows together, both prompts once. Long answers: the short ones together, little padding.
    assert computed(50, (1, 12)) == 2 * 50 + 4 * 12
    assert computed(1, (1, 12)) == 4 * 1 + 2 * 1 + 2 * 12


def test_the_largest_micro_batch_goes_first():
    lengths = ((2, 3), (9, 12), (1, 1), (5, 4))
    records = [graded(random_prompts(*pair), [RIGHT, UNFORMATTED]) for pair in lengths]
    batch = build((random_prompts(20, 21, 20, 22), records))
    computed = [m.prompts_DS.numel() + m.completions_RT.numel() for m in batch.micro_batches(2, CPU)]
    assert computed == [21 + 2 * 12, 22 + 2 * 5, 20 + 2 * 3, 20 + 2 * 1]


def test_weights_and_advantages_follow_their_rows_through_the_sorting():
    # Rows are sorted by length; each must keep its own advantage and weights. Long rows first shows a mix-up.
    model = tiny_model("llama").double()
    prompts = random_prompts(2)
    completions = random_prompts(9, 1, 5, 3)
    step = (prompts, [graded(completions, [RIGHT, UNFORMATTED, WRONG, RIGHT])])
    batch = build(step, "grpo")
    by_row = [
        pack([prompts[0]], [c], batch.advantages_B[row : row + 1], torch.full((1, 9), 1 / 4 / len(c)), CPU)
        for row, c in enumerate(completions)
    ]
    assert_same_gradient(gradient(model, batch.micro_batches(2, CPU), "grpo"), gradient(model, by_row, "grpo"))


@settings(deadline=None)
@given(groups, st.integers(1, 4), st.integers(1, 4), st.booleans())
def test_processes_share_whole_groups_and_meet_after_each_micro_batch(step, rows, processes, keep_all):
    prompts = [(3 + number,) for number in range(len(step))]
    batch = build((prompts, [graded([c for c, _ in group], [g for _, g in group]) for group in step]), keep_all=keep_all)
    alone = batch.micro_batches(len(batch.completions), CPU)
    shares = [batch.micro_batches(rows, CPU, rank, processes) for rank in range(processes)]
    assert len({len(share) for share in shares}) == 1
    weighed = [[micro for micro in share if micro.weights_N.any()] for share in shares]
    # The first token of a row names its group.
    owners = [{row[0] for micro in share for row in rows_of(micro)} for share in weighed]
    assert sum(map(len, owners)) == len(set().union(*owners))
    sums = [
        sum(float((m.advantages_N * m.weights_N * m.targets_N).sum()) for m in batches)
        for batches in (alone, [*chain(*shares)])
    ]
    assert sums[1] == pytest.approx(sums[0], abs=1e-4)
    assert sum(len(m.targets_N) for share in weighed for m in share) == sum(len(m.targets_N) for m in alone)


@pytest.mark.parametrize("loss_type", ["dr_grpo", "grpo", "bnpo"])
def test_a_masked_completion_counts_in_its_group_and_not_in_the_loss(qwen2, loss_type):
    prompts = random_prompts(3)
    completions = random_prompts(5, 7, 4)
    records = tuple(Completion(c, (), "", truncated=place == 1) for place, c in enumerate(completions))
    step = (prompts, [GradedProblem(Problem("p", "7"), "p", records, (RIGHT, WRONG, UNFORMATTED))])
    masked, whole = build(step, loss_type, mask_truncated=True), build(step, loss_type)
    torch.testing.assert_close(masked.advantages_B, whole.advantages_B)
    (micro,) = masked.micro_batches(8, CPU)
    assert len(micro.targets_N) == 5 + 4
    # By hand: the two other rows, with the weights that the formulas give when the masked row has no token.
    denominators = {"dr_grpo": [3 * LIMIT] * 2, "grpo": [3 * 5, 3 * 4], "bnpo": [9, 9]}[loss_type]
    by_hand = [
        pack(prompts, [completions[row]], masked.advantages_B[row : row + 1], torch.full((1, 7), 1 / denominator), CPU)
        for row, denominator in zip((0, 2), denominators, strict=True)
    ]
    model = qwen2.double()
    assert_same_gradient(gradient(model, [micro], loss_type), gradient(model, by_hand, loss_type))
