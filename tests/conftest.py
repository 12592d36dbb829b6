"""Tiny random models of every family, a tiny tokenizer, and the environment all tests share."""

import os

# Before torch is imported: one thread, so that two test workers on two cores do not fight.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import hypothesis
import pytest
import torch
from tiny_models import FAMILIES, tiny_model

# A busy machine is no failure; fewer of hypothesis' examples keep the fast tests fast.
hypothesis.settings.register_profile("steerlift", deadline=None, max_examples=30)
hypothesis.settings.load_profile("steerlift")


@pytest.fixture(autouse=True)
def _same_start() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=sorted(FAMILIES))
def family(request):
    """A tiny random model of each supported family, three decoder layers."""
    return tiny_model(request.param)


@pytest.fixture
def qwen2():
    return tiny_model("qwen2")
