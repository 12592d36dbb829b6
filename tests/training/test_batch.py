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


def build(step, loss_type="dr_grpo", scale_rewards=False, keep_all=False) -> StepBatch:
    return StepBatch.build(*step, loss_type, LIMIT, scale_rewards, keep_all)


@pytest.fixture
def double(family):
    """A model in float64: what differs then differs by more than the rounding of its random layers."""
    return family.double()


def gradient(model, batches: list[MicroBatch], loss_type="dr_grpo") -> tuple[float, torch.Tensor]:
    """The summed loss of the micro-batches and the gradient with respect to every parameter, as one vector."""
    model.zero_grad()
    loss = our_loss(TrainConfig(loss_type=loss_type, max_completion_length=LIMIT), model, None)
    total = 0.0
    for batch in batches:
        part, entropies = loss(batch)
        part.backward()
        total += part.item()
        assert len(entropies) == len(batch.targets_N)
    return total, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def assert_same_gradient(one: tuple[float, torch.Tensor], other: tuple[float, torch.Tensor], tolerance: float = 1e-7) -> None:
    assert float(other[1].norm()) > 0
    assert one[0] == pytest.approx(other[0], rel=1e-6, abs=1e-7)
    assert float((one[1] - other[1]).norm() / other[1].norm()) < tolerance


@settings(deadline=None, max_examples=50)
@given(groups, st.integers(1, 5), st.booleans())
def test_micro_batches_hold_every_row_with_signal_once(step, rows, keep_all):
    prompts = [tuple(range(3, 4 + number)) for number in range(len(step))]
    batch = build((prompts, [graded([c for c, _ in group], [g for _, g in group]) for group in step]), keep_all=keep_all)
    assert torch.allclose(batch.rewards_PG, torch.tensor([[REWARDS[grade] for _, grade in group] for group in step]))
    kept = [len({grade for _, grade in group}) > 1 or keep_all for group in step]
    assert batch.skipped_B.tolist() == [not keep for keep in kept for _ in range(3)]

    expected = sorted((*prompts[p], *c) for p, group in enumerate(step) for c, _ in group if kept[p])
    seen = []
    batches = list(batch.micro_batches(rows, CPU))
    for micro in batches:
        assert micro.ids_RS.shape == micro.mask_RS.shape
        assert len(micro.ids_RS) <= rows
        seen += [tuple(row[mask.bool()].tolist()) for row, mask in zip(micro.ids_RS, micro.mask_RS, strict=True)]
    assert sorted(seen) == expected
    assert len(batches) == -(-len(expected) // rows)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(ids, ids), min_size=1, max_size=5))
def test_packing_is_what_loops_give(pairs):
    prompts, completions = zip(*pairs, strict=True)
    advantages = torch.arange(1.0, len(pairs) + 1)
    weights = torch.rand(len(pairs), 8)
    micro = pack(prompts, completions, advantages, weights, CPU)
    width = max(len(prompt) + len(completion) for prompt, completion in pairs)
    targets, advantages_N, weights_N, predictors = [], [], [], []
    for row, (prompt, completion) in enumerate(pairs):
        line = [*prompt, *completion]
        assert micro.ids_RS[row].tolist() == line + [0] * (width - len(line))
        assert micro.mask_RS[row].tolist() == [1] * len(line) + [0] * (width - len(line))
        for place, token in enumerate(completion):
            targets.append(token)
            advantages_N.append(advantages[row].item())
            weights_N.append(weights[row, place].item())
            predictors.append(row * width + len(prompt) + place - 1)
    assert micro.targets_N.tolist() == targets
    assert micro.advantages_N.tolist() == advantages_N
    assert micro.weights_N.tolist() == weights_N
    assert micro.predictors_N.tolist() == predictors


def test_a_step_lays_its_tensors_out_by_problem_and_completion():
    step = ([(5, 6), (7,)], [graded([(1,), (2, 3)], [RIGHT, WRONG]), graded([(4, 5, 6), (7,)], [WRONG, WRONG])])
    batch = build(step)
    assert batch.prompts == [(5, 6), (5, 6), (7,), (7,)]
    assert batch.completions == [(1,), (2, 3), (4, 5, 6), (7,)]
    torch.testing.assert_close(batch.advantages_B, torch.tensor([0.5, -0.5, 0.0, 0.0]))
    assert batch.skipped_B.tolist() == [False, False, True, True]
    torch.testing.assert_close(batch.weights_BT * 4 * LIMIT, torch.tensor([[1.0, 0, 0], [1, 1, 0], [1, 1, 1], [1, 0, 0]]))
    scaled = build(step, scale_rewards=True).advantages_B
    # The deviation of two rewards a distance d apart is d / sqrt(2).
    torch.testing.assert_close(scaled, torch.tensor([1.0, -1.0, 0.0, 0.0]) * 0.5 / (0.5**0.5 + 1e-4))


def assert_cutting_changes_nothing(model, loss_type: str) -> None:
    batch = build(random_step(4, 8), loss_type)
    whole = gradient(model, list(batch.micro_batches(32, CPU)), loss_type)
    for rows, count in ((8, 4), (1, 32)):
        parts = list(batch.micro_batches(rows, CPU))
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
    assert padded.ids_RS.shape[1] == 38
    assert_same_gradient(gradient(double, [padded]), alone)


@pytest.mark.parametrize("loss_type", ["dr_grpo", "grpo", "bnpo"])
def test_skipping_groups_without_signal_gives_the_same_gradient(qwen2, loss_type):
    step = random_step(4, 4, no_signal=2)
    skipping, keeping = build(step, loss_type), build(step, loss_type, keep_all=True)
    assert int(skipping.skipped_B.sum()) == 8
    assert not keeping.skipped_B.any()
    assert sum(len(part.ids_RS) for part in skipping.micro_batches(4, CPU)) == 8
    model = qwen2.double()
    less, all_of_it = (gradient(model, list(b.micro_batches(4, CPU)), loss_type) for b in (skipping, keeping))
    # The loss is the same but for groups whose advantages are 0: they add nothing to it either.
    assert_same_gradient(less, all_of_it)


def test_a_step_without_any_signal_has_no_micro_batch():
    assert list(build(random_step(2, 4, no_signal=2)).micro_batches(4, CPU)) == []


def test_hidden_states_are_those_that_predict_each_token(family):
    prompts, completions = random_prompts(3, 6, 1), random_prompts(5, 2, 9)
    micro = pack(prompts, completions, torch.ones(3), torch.ones(3, 9), CPU)
    with torch.no_grad():
        hidden = iter(micro.hidden(family.get_decoder()))
        for prompt, completion in zip(prompts, completions, strict=True):
            states = family.get_decoder()(torch.tensor([[*prompt, *completion]])).last_hidden_state[0]
            for place in range(len(completion)):
                torch.testing.assert_close(next(hidden), states[len(prompt) + place - 1], rtol=1e-4, atol=1e-4)


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
    assert_same_gradient(gradient(model, list(batch.micro_batches(2, CPU)), "grpo"), gradient(model, by_row, "grpo"))
