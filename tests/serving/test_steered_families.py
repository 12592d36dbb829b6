"""vLLM with the plugin against transformers with hooks, without a server between: every family, both modes, tight memory."""

import importlib.util

import pytest
from served import NEW_TOKENS, expected, in_process, mixed_requests, saved_model, served_model, two_vectors

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: make test-serving"),
]

# A step takes fewer tokens than the longer prompts have, so prefills are chunked.
CHUNKED = {"max_num_seqs": 16, "max_num_batched_tokens": 96, "enable_prefix_caching": True}


def _job(folder, model, requests, options, weights=()):
    vectors = {name: str(vectors.save(folder / f"{name}.safetensors")) for name, vectors in two_vectors().items()}
    path = saved_model(folder / "model", model)
    files = [str(saved_model(folder / f"new-{i}", new) / "model.safetensors") for i, new in enumerate(weights)]
    return {
        "model": str(path),
        "vectors": vectors,
        "requests": requests,
        "options": options,
        "tokens": NEW_TOKENS,
        "weights": files,
    }


@pytest.mark.parametrize(
    ("family", "tied", "eager"),
    [
        ("qwen2", True, False),
        ("qwen3", True, True),
        ("llama", False, True),
        ("mistral", False, True),
        ("gemma2", True, True),
        ("gemma3", True, False),
    ],
    ids=lambda value: {True: "yes", False: "no"}.get(value, value),
)
def test_every_family_equals_transformers_before_and_after_new_weights(family, tied, eager, tmp_path):
    models = [served_model(family, seed, tied) for seed in range(2)]
    requests = mixed_requests(16)
    job = _job(tmp_path, models[0], requests, {**CHUNKED, "enforce_eager": eager}, models[1:])

    rounds = in_process(tmp_path, job)["rounds"]

    assert rounds == [expected(model, requests) for model in models]


def test_preempted_requests_keep_their_steering(tmp_path):
    model = served_model("qwen2")
    # One block of 128 tokens holds a prompt, but not what follows it; there are fewer blocks than the requests need in the end.
    requests = mixed_requests(16, (120,))
    options = {"max_num_seqs": 16, "max_num_batched_tokens": 512, "enforce_eager": True, "num_gpu_blocks_override": 10}

    answers = in_process(tmp_path, _job(tmp_path, model, requests, options))

    assert answers["preemptions"] > 0
    assert answers["rounds"] == [expected(model, requests)]
