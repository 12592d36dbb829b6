from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steerlift.records.errors import InputError
from steerlift.records.types import Problem
from steerlift.training.config import TrainConfig
from steerlift.training.schedule import learning_rate_factor, problems_of_step


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_size": 0}, "--train_size 0: expected at least 1"),
        ({"num_chains": 1}, "--num_chains 1: expected at least 2"),
        ({"num_train_iters": 0}, "--num_train_iters 0: expected at least 1"),
        ({"num_train_iters": -1, "sft_steps": 2}, "--num_train_iters -1: expected at least 0"),
        ({"eval_every": 0}, "--eval_every 0"),
        ({"temperature": 0.0}, "--temperature 0.0"),
        ({"temperature": float("nan")}, "--temperature nan"),
        ({"pass_at_k": (4,)}, "--pass_at_k 4 with 3 completions"),
        ({"gradient_accumulation_steps": 21}, "--gradient_accumulation_steps 21 with --train-size 20"),
        ({"micro_batch_size": 0}, "--micro_batch_size 0"),
        ({"micro_batch_size": -1}, "--micro_batch_size -1"),
        ({"batch_rows": 0}, "--batch_rows 0"),
        ({"batch_rows": -1}, "--batch_rows -1"),
        ({"learning_rate": -1.0}, "--learning_rate -1.0"),
        ({"adam_beta1": 1.0}, "--adam_beta1 1.0"),
        ({"adam_beta2": -0.1}, "--adam_beta2 -0.1"),
        ({"weight_decay": -0.1}, "--weight_decay -0.1"),
        ({"max_grad_norm": 0.0}, "--max_grad_norm 0.0"),
        ({"warmup_percent": 1.5}, "--warmup_percent 1.5"),
        ({"warmup_percent": -0.1}, "--warmup_percent -0.1"),
        ({"final_lr_percent": -0.1}, "--final_lr_percent -0.1"),
        ({"epsilon_low": -0.2}, "--epsilon_low -0.2"),
        ({"epsilon_high": -0.2}, "--epsilon_high -0.2"),
        ({"beta": -0.1}, "--beta -0.1"),
        ({"num_iterations": 0}, "--num_iterations 0"),
        ({"few_shot": -1}, "--few_shot -1"),
        ({"sft_steps": -1}, "--sft_steps -1"),
        ({"sft_batch": 0}, "--sft_batch 0"),
        ({"lora_r": -4}, "--lora_r -4"),
        ({"keep_checkpoints": 0}, "--keep_checkpoints 0"),
        ({"eval_temperature": -0.1}, "--eval_temperature -0.1"),
        ({"pass_at_k": ()}, "--pass_at_k"),
        ({"rewards": ()}, "--rewards: expected at least one package.module:function"),
        ({"resume": True, "overwrite": True}, "--resume goes on with a run and --overwrite deletes it"),
    ],
)
def test_impossible_options_are_refused_at_once(changes, message):
    with pytest.raises(InputError, match=message):
        TrainConfig(**{"train_size": 20, "num_completions_eval": 3, **changes})


def test_the_rate_rises_to_its_peak_and_falls_to_its_share():
    config = TrainConfig(num_train_iters=20, warmup_percent=0.2, final_lr_percent=0.1)
    factors = [learning_rate_factor(done, config) for done in range(21)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    # From there to 0.1 in 16 equal steps; after the last step nothing falls further.
    assert factors[4:] == pytest.approx([1 - 0.9 * step / 16 for step in range(17)])
    assert learning_rate_factor(99, config) == pytest.approx(0.1)


@pytest.mark.parametrize(("share", "final", "expected"), [(0.0, 1.0, [1.0] * 5), (1.0, 0.1, [0.2, 0.4, 0.6, 0.8, 1.0])])
def test_the_rate_at_the_limits_of_its_options(share, final, expected):
    config = TrainConfig(num_train_iters=5, warmup_percent=share, final_lr_percent=final)
    assert [learning_rate_factor(done, config) for done in range(5)] == pytest.approx(expected)


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 2**32))
def test_every_problem_comes_once_in_every_epoch(size, count, seed):
    problems = [Problem(str(number), "7") for number in range(size)]
    count = min(count, size)
    drawn = [p.problem for step in range(1, 3 * size + 1) for p in problems_of_step(problems, step, count, seed)]
    assert len(drawn) == 3 * size * count
    for start in range(0, len(drawn) - size + 1, size):
        assert Counter(drawn[start : start + size]) == Counter(p.problem for p in problems)


def test_epochs_differ_in_order_and_seeds_too():
    problems = [Problem(str(number), "7") for number in range(40)]
    orders = [problems_of_step(problems, step, 40, seed) for seed in (1, 2) for step in (1, 2)]
    assert len({tuple(p.problem for p in order) for order in orders}) == 4
    assert problems_of_step(problems, 1, 40, 1) == orders[0]
