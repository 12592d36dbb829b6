"""Models, vectors and requests of the serving tests, and what transformers answers to them under `steer`."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from small_pipeline import tokenizer
from tiny_models import HIDDEN, LAYERS, tiny_model

from steerlift.steering.apply import steer
from steerlift.steering.vectors import SteeringVectors

NEW_TOKENS = 16
# vLLM's attention on a CPU knows head sizes from 32 on, and works in blocks of 128 tokens.
OPTIONS = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 512}
SLIDING = ("mistral", "gemma2", "gemma3")

ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}


def served_model(family: str, seed: int = 0, tied: bool = True) -> Any:
    """A tiny model with the small pipeline's tokenizer, of a shape that vLLM takes."""
    special = {"sliding_window": 64} if family in SLIDING else {}
    tokens = {
        "vocab_size": len(tokenizer()),
        "eos_token_id": tokenizer().eos_token_id,
        "pad_token_id": tokenizer().pad_token_id,
    }
    return tiny_model(family, seed, **OPTIONS, **special, **tokens, bos_token_id=None, tie_word_embeddings=tied)


def saved_model(folder: Path, model: Any) -> Path:
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def two_vectors() -> dict[str, SteeringVectors]:
    """`first` has a vector at every layer, `second` not at layer 1."""
    generator = torch.Generator().manual_seed(5)
    draw = {name: [torch.randn(HIDDEN, generator=generator) * 2 for _ in range(LAYERS)] for name in ("first", "second")}
    return {
        "first": SteeringVectors(dict(enumerate(draw["first"]))),
        "second": SteeringVectors({index: draw["second"][index] for index in (0, 2)}),
    }


def mixed_requests(count: int, lengths: tuple[int, ...] = (3, 40, 130, 260)) -> list[dict[str, Any]]:
    """Prompts of `lengths` shared tokens and four of their own, each with its own steering or none."""
    generator = torch.Generator().manual_seed(9)
    shared = torch.randint(5, 300, (260,), generator=generator).tolist()
    fields = [
        lambda i: None,
        lambda i: {"vector": "first", "weight": round(0.3 + 0.02 * i, 2)},
        lambda i: {"vector": "second", "weight": [0.5, -1.0, round(0.01 * i, 2)]},
        lambda i: [{"vector": "first", "weight": 0.4}, {"vector": "second", "weight": round(-0.02 * i, 2)}],
    ]
    requests = []
    for i in range(count):
        own = torch.randint(5, 300, (4,), generator=generator).tolist()
        requests.append({"prompt": [*shared[: lengths[i // 4 % len(lengths)]], *own], "steering": fields[i % 4](i)})
    return requests


def expected(model: Any, requests: list[dict[str, Any]]) -> list[list[int]]:
    """transformers' greedy continuation of each request."""
    return [_continuation(model, request["prompt"], request["steering"]) for request in requests]


def _continuation(model: Any, prompt: list[int], steering: Any) -> list[int]:
    entries = [] if steering is None else steering if isinstance(steering, list) else [steering]
    with contextlib.ExitStack() as stack:
        for entry in entries:
            vectors, weight = two_vectors()[entry["vector"]], entry["weight"]
            if isinstance(weight, list):
                vectors, weight = SteeringVectors({i: weight[i] * v for i, v in vectors.layers.items()}), 1.0
            stack.enter_context(steer(model, vectors, weight))
        ids = torch.tensor([prompt])
        with torch.no_grad():
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None
            )
    return [int(token) for token in out[0, len(prompt) :]]


def in_process(folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    """Runs `in_process.py` (vLLM without HTTP) in a process of its own and returns what it has written."""
    (folder / "job.json").write_text(json.dumps(job))
    script = Path(__file__).with_name("in_process.py")
    environment = {**os.environ, **ENVIRONMENT, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_USE_V2_MODEL_RUNNER": "0"}
    done = subprocess.run(
        [sys.executable, script, folder], env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    answers: dict[str, Any] = json.loads((folder / "answers.json").read_text())
    return answers
