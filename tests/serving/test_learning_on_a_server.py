"""Vectors learned on the real vLLM: it steers by them as they are after every step, and its own weights never change."""

import importlib.util
import json
from dataclasses import fields, replace

import pytest
from safetensors.torch import load_file
from test_training_on_a_server import EVERY_STEP, LONG_PROMPTS, NO_VLLM, assert_every_step_once, assert_small_gaps, small_run

from steerlift.records.errors import InputError
from steerlift.sampling.hand_over import weight_version
from steerlift.sampling.server import Server
from steerlift.serving.private import read_key
from steerlift.steering.identity import identity
from steerlift.training.checkpoints import checkpoint_path, vectors_path
from steerlift.training.config import MATH_REWARD
from steerlift.training.learn import learn
from steerlift.training.learn_config import LearnConfig
from steerlift.training.train import train

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason=NO_VLLM)]


@pytest.fixture
def learning(served, tmp_path) -> LearnConfig:
    run = small_run(served.models, served.port, tmp_path / "run")
    given = {field.name: getattr(run, field.name) for field in fields(run)}
    # The model that the server was started with; what other tests have lent it carries another version.
    base = str(served.models / "base")
    served.give("base", identity(base))
    # It is right about half of the time, so that most groups carry signal.
    own = {"model_name": base, "rewards": (MATH_REWARD,), "temperature": 1.0, "num_chains": 8, "learning_rate": 0.3}
    return LearnConfig(**{**given, **own, "objective": "grpo"})


@pytest.fixture
def server(served):
    server = Server(f"http://127.0.0.1:{served.port}", read_key(served.folder))
    yield server
    server.close()


@pytest.mark.parametrize("changes", [{}, LONG_PROMPTS], ids=["plain", "long prompts"])
def test_the_server_steers_by_the_vectors_of_every_step(learning, server, changes):
    config = replace(learning, **EVERY_STEP, **changes)
    before = weight_version(server)
    learn(config)
    assert_every_step_once(config)
    # Vectors of a step before would show: each step moves them by a third of the activations' size.
    assert_small_gaps(config)
    assert weight_version(server) == before
    assert not [name for name in server.info()["vectors"] if name.startswith("steerlift-weights-")]  # taken back


def test_it_learns_there_what_it_learns_here(learning, tmp_path):
    """Greedy completions are the same on both sides, so every number is, up to rounding."""
    config = replace(learning, eval_temperature=0.0, num_train_iters=2)
    learn(config)
    here = replace(config, use_vllm=False, output_dir=tmp_path / "here")
    learn(here)
    summaries = [json.loads((run.output_dir / "eval_summary.json").read_text()) for run in (config, here)]
    assert summaries[0]["0"]["mean_length"] == summaries[1]["0"]["mean_length"]  # the same base at step 0
    moved = load_file(vectors_path(checkpoint_path(config.output_dir, 2)))
    assert all(bool(vector.any()) for vector in moved.values())


def test_a_server_with_other_weights_is_refused(learning, served, tmp_path):
    train(small_run(served.models, served.port, tmp_path / "trained"))  # leaves its weights there
    with pytest.raises(InputError, match="has other weights than"):
        learn(learning)
