"""A policy that cannot be sampled any more, whenever it happens: the last step's state is saved, and no step is lost."""

import shutil
import socket
from dataclasses import replace

import pytest
from training_runs import assert_same_run, metrics

from steerlift.records.errors import InputError, ServerError
from steerlift.training.checkpoints import checkpoint_path, saved_steps
from steerlift.training.policy_sampling import LocalPolicy
from steerlift.training.train import train


@pytest.fixture
def failing(monkeypatch):
    """Has the policy fail once, at the so many-th time that it is asked."""

    def fail(number: int, error: Exception) -> None:
        times = iter(range(1, 100))

        def sample(policy, *arguments):
            if next(times) == number:
                raise error
            return asked(policy, *arguments)

        asked = LocalPolicy.sample
        monkeypatch.setattr(LocalPolicy, "sample", sample)

    return fail


@pytest.mark.parametrize(
    ("number", "done", "saved"),
    [(1, 0, []), (2, 0, []), (3, 1, [1]), (4, 2, [2]), (5, 2, [2]), (6, 3, [2, 3])],
    ids=["first evaluation", "step 1", "step 2", "evaluation of step 2", "step 3", "last evaluation"],
)
def test_a_run_stops_after_its_last_step_and_goes_on_from_there(config, finished, failing, number, done, saved):
    failing(number, ServerError("the server is gone"))
    with pytest.raises(ServerError) as raised:
        train(config)
    assert str(raised.value) == f"after step {done}: the server is gone; --resume goes on from the last checkpoint"
    assert saved_steps(config.output_dir) == saved
    assert len(metrics(config.output_dir)) == done
    train(replace(config, resume=True))
    for step in set(saved) - set(saved_steps(finished.output_dir)):
        shutil.rmtree(checkpoint_path(config.output_dir, step))
    assert_same_run(config.output_dir, finished.output_dir)


def test_what_a_server_refuses_costs_no_step_either(config, failing):
    failing(5, InputError("the server is another one"))
    with pytest.raises(InputError, match="after step 2: the server is another one"):
        train(replace(config, save_every=50))
    assert saved_steps(config.output_dir) == [2]


def test_no_server_is_waited_for_and_then_one_line(config, capsys, monkeypatch):
    for name in ("STEERLIFT_API_KEY", "VLLM_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(ServerError) as raised:
        train(replace(config, use_vllm=True, vllm_port=port, vllm_patience=0.2))
    reason = "no steerlift server of this user is running there; start `steerlift serve`"
    assert str(raised.value).startswith("--use_vllm: ")
    assert str(raised.value).endswith(f"{reason}; waited 0.2 s for it")
    assert f"{reason}; waiting for it\n" in capsys.readouterr().err
