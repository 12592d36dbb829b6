"""Baked checkpoints in vLLM as it is: no plugin, the same greedy text as the steered model under transformers."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from served import ENVIRONMENT, NEW_TOKENS, saved_model, served_model, two_vectors
from small_pipeline import TEXTS, tokenizer

from steerlift.exports.config import ExportConfig
from steerlift.exports.export import export
from steerlift.problems.prompt import render_prompt
from steerlift.steering.apply import steer

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: make test-serving"),
]

WEIGHT = 0.5


@pytest.mark.parametrize(("family", "tied"), [("qwen2", True), ("llama", False)])
def test_unpatched_vllm_says_what_the_steered_model_says(family, tied, tmp_path):
    model = served_model(family, tied=tied)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    vectors = two_vectors()["second"]
    base, path = saved_model(tmp_path / "base", model), vectors.save(tmp_path / "v.safetensors")
    folder = export(ExportConfig("baked", str(base), path, tmp_path / "baked", WEIGHT, device="cpu")).path
    prompts = [render_prompt(tokenizer(), text) for text in TEXTS[:4]]

    answers = _vllm(tmp_path, {"model": str(folder), "prompts": prompts, "tokens": NEW_TOKENS})

    plain = [_greedy(model, prompt) for prompt in prompts]
    with steer(model, vectors, WEIGHT):
        steered = [_greedy(model, prompt) for prompt in prompts]
    assert answers == steered
    assert steered != plain


def _greedy(model, prompt: str) -> list[int]:
    ids = torch.tensor([tokenizer().encode(prompt, add_special_tokens=False)])
    with torch.no_grad():
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None
        )
    return output[0, ids.shape[1] :].tolist()


def _vllm(folder: Path, job: dict) -> list[list[int]]:
    (folder / "job.json").write_text(json.dumps(job))
    # No plugin is named so: vLLM loads none.
    environment = {**os.environ, **ENVIRONMENT, "VLLM_PLUGINS": "none", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    script = Path(__file__).with_name("plain_vllm.py")
    done = subprocess.run(
        [sys.executable, script, folder], env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads((folder / "answers.json").read_text())
