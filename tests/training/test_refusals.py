"""What cannot be trained is refused in one line, before anything is written."""

import sys
from dataclasses import replace

import pytest
from tiny_models import tiny_model

from steerlift.records.errors import InputError, MissingDependencyError, MissingInputError
from steerlift.training.policy_loss import check_liger_head
from steerlift.training.train import train

EXTRAS = ("liger_kernel", "liger_kernel.chunked_loss", "peft", "wandb", "trackio")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model_name": "./absent"}, MissingInputError, "model ./absent: no such folder"),
        ({"max_prompt_length": 2}, InputError, "--max_prompt_length 2 leaves 0 of 20 problems, a step needs 3; raise it"),
        ({"use_liger": True}, MissingDependencyError, "--use_liger needs liger-kernel .*: pip install 'steerlift.liger.'"),
        ({"use_liger": True, "beta": 0.1}, InputError, "--use_liger knows no --beta, --num_iterations"),
        ({"use_liger": True, "num_iterations": 2}, InputError, "--use_liger knows no --beta, --num_iterations"),
        ({"lora_r": 4}, MissingDependencyError, "--lora_r needs peft: pip install 'steerlift.lora.'"),
        ({"use_wandb": True}, MissingDependencyError, "--use_wandb needs wandb"),
        ({"use_trackio": True}, MissingDependencyError, "--use_trackio needs trackio"),
        ({"rewards": ("nowhere:reward",)}, InputError, "reward nowhere:reward: there is no module nowhere here"),
        ({"rewards": ("training_rewards",)}, InputError, "reward 'training_rewards': expected package.module:function"),
        ({"rewards": ("training_rewards:absent",)}, InputError, "module training_rewards has no absent"),
        ({"few_shot": 1}, InputError, "few_shot: got 0 training problem"),
        ({"device": "cuda:99"}, InputError, "--device cuda:99 cannot be used"),
        ({"dtype": "int3"}, InputError, "--dtype int3 is unknown"),
        ({"attention": "none"}, InputError, "--attention none is unknown"),
    ],
)
def test_what_cannot_be_trained_is_refused_and_leaves_no_run_behind(config, monkeypatch, changes, error, message):
    for extra in EXTRAS:
        monkeypatch.setitem(sys.modules, extra, None)  # as if it were not installed
    with pytest.raises(error, match=message) as raised:
        train(replace(config, **changes))
    assert "\n" not in str(raised.value)
    assert not config.output_dir.exists()


def test_liger_refuses_a_head_that_it_does_not_know():
    check_liger_head(tiny_model("qwen2"))
    with pytest.raises(InputError, match="--use_liger knows no head with a soft cap or a scale; leave it out"):
        check_liger_head(tiny_model("gemma2"))


def test_an_empty_reward_module_is_refused_before_the_model_is_loaded(config):
    with pytest.raises(InputError, match="reward nowhere:reward"):
        train(replace(config, rewards=("nowhere:reward",), model_name="./absent"))


def test_a_warm_up_needs_worked_solutions(config):
    with pytest.raises(InputError) as raised:
        train(replace(config, sft_steps=2, sft_batch=8, max_completion_length=12))
    assert str(raised.value) == (
        "--sft_steps 2: 0 of 20 problems have a worked solution of at most 12 tokens, a step needs 8; lower --sft_batch, "
        "raise --max_completion_length, or take problems with solutions"
    )
    assert not config.output_dir.exists()
