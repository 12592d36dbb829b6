import json
import weakref
from collections.abc import Iterator

import pytest
import torch
from exported import model_with_biases, random_vectors, saved_model
from safetensors import safe_open
from small_pipeline import tokenizer
from tiny_models import random_prompts
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from steerlift.exports.baked import write_baked
from steerlift.exports.config import ExportConfig
from steerlift.exports.export import export
from steerlift.exports.shards import write_tensors
from steerlift.exports.verify import compare
from steerlift.records.errors import InputError
from steerlift.steering.apply import steer
from steerlift.steering.models import load_tokenizer

WEIGHT = 0.7
NEW_TOKENS = 12


def baked(tmp_path, base, vectors, **options):
    """The baked folder of the saved model `base`, by the verb's own function."""
    path = vectors.save(tmp_path / "v.safetensors")
    config = ExportConfig("baked", str(base), path, tmp_path / "baked", WEIGHT, device="cpu", **options)
    return export(config).path


def greedy(model, prompt):
    ids = torch.tensor([prompt])
    with torch.no_grad():
        return model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None
        ).tolist()


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("qwen2", {"tie_word_embeddings": True}),
        ("qwen2", {"tie_word_embeddings": False, "rope_theta": 1e6}),
        ("llama", {"tie_word_embeddings": False}),
        ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 32}),
        ("mistral", {"sliding_window": None}),
    ],
)
def test_a_baked_model_is_the_steered_one_in_plain_transformers(family, changes, tmp_path):
    model = model_with_biases(family, **changes)
    vectors = random_vectors(model, without=(1,))
    base = saved_model(tmp_path / "base", model)

    loaded, found = AutoModelForCausalLM.from_pretrained(baked(tmp_path, base, vectors), output_loading_info=True)

    assert type(loaded).__name__ == "LlamaForCausalLM"
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    (prompt,) = random_prompts(20)
    with torch.no_grad():
        ids = torch.tensor([prompt])
        plain = model(ids).logits
        with steer(model, vectors, WEIGHT):
            steered, text = model(ids).logits, greedy(model, prompt)
        torch.testing.assert_close(loaded(ids).logits, steered, rtol=1e-4, atol=1e-4)
    assert float((steered - plain).abs().max()) > 0.1
    assert greedy(loaded, prompt) == text


def test_config_ids_and_generation_config_are_carried_over(tmp_path):
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 50_000.0}
    model = model_with_biases("qwen2", tie_word_embeddings=True, rms_norm_eps=1e-4, rope_parameters=rope)
    model.generation_config = GenerationConfig(do_sample=True, temperature=0.6, eos_token_id=[1, 2], pad_token_id=0)
    base = saved_model(tmp_path / "base", model)

    folder = baked(tmp_path, base, random_vectors(model))

    was, now = (json.loads((path / "config.json").read_text()) for path in (base, folder))
    same = ["vocab_size", "hidden_size", "intermediate_size", "rms_norm_eps", "eos_token_id", "pad_token_id", "bos_token_id"]
    assert {key: now[key] for key in same} == {key: was[key] for key in same}
    assert now["tie_word_embeddings"] is now["attention_bias"] is now["mlp_bias"] is True
    # The second and third are what engines older than transformers 5 read.
    assert (now["rope_parameters"], now["rope_theta"], now["rope_scaling"]) == (rope, 50_000.0, rope)
    generation = [json.loads((path / "generation_config.json").read_text()) for path in (base, folder)]
    assert generation[0] == generation[1]
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118 - safe_open is no mapping


@pytest.mark.parametrize("claimed", ["Qwen2Tokenizer", "LlamaTokenizerFast", "TokenizersBackend"])
def test_the_tokenizer_reads_as_before_whatever_class_its_files_claim(claimed, tmp_path):
    # Under a Llama config transformers would build LlamaTokenizer's own splitting of texts anew.
    model = model_with_biases("qwen2")
    base = saved_model(tmp_path / "base", model)
    path = base / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tokenizer_class": claimed}))
    text = "Tom  has\n3x + 5 = 20 <think>é</think>"
    folder = tmp_path / "new"
    folder.mkdir()
    write_baked(folder, str(base), random_vectors(model), WEIGHT, "auto")

    tokens = AutoTokenizer.from_pretrained(folder)

    assert tokens.encode(text) == load_tokenizer(str(base)).encode(text)
    assert tokens.chat_template == tokenizer().chat_template


def test_the_original_dtype_is_kept_and_another_given_on_request(tmp_path):
    model = model_with_biases("qwen2").to(torch.bfloat16)
    base = saved_model(tmp_path / "base", model)
    for dtype, expected in (("auto", torch.bfloat16), ("float32", torch.float32)):
        folder = baked(tmp_path, base, random_vectors(model), dtype=dtype)
        loaded = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
        assert {parameter.dtype for parameter in loaded.parameters()} == {expected}


def test_a_sharded_source_becomes_shards_again(tmp_path):
    model = model_with_biases("qwen2", tie_word_embeddings=False)
    vectors = random_vectors(model)
    base = saved_model(tmp_path / "base", model, max_shard_size="100KB")
    assert len(list(base.glob("model-*.safetensors"))) > 2
    whole, sharded = tmp_path / "whole", tmp_path / "sharded"
    for folder, most_bytes in ((whole, 10**9), (sharded, 150_000)):
        folder.mkdir()
        write_baked(folder, str(base), vectors, WEIGHT, "auto", most_bytes)

    files = sorted(path.name for path in sharded.glob("*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    one, other = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (whole, sharded))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_only_one_shard_of_tensors_is_alive_at_a_time(tmp_path):
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        nonlocal most
        for number in range(20):
            tensor = torch.ones(1000)
            alive.append(weakref.ref(tensor))
            most = max(most, sum(reference() is not None for reference in alive))
            yield str(number), tensor

    write_tensors(tmp_path, tensors(), most_bytes=3 * 4000)

    assert most <= 5  # three of a shard, the next, and the one that the loop still holds
    assert len(list(tmp_path.glob("*.safetensors"))) == 7


def test_an_adapter_is_merged_and_baked(tmp_path):
    from peft import LoraConfig, get_peft_model

    model = model_with_biases("llama")
    vectors = random_vectors(model)
    base = saved_model(tmp_path / "base", model)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(tmp_path / "adapter")

    loaded = AutoModelForCausalLM.from_pretrained(baked(tmp_path, tmp_path / "adapter", vectors))

    merged = adapted.merge_and_unload()
    (prompt,) = random_prompts(20)
    with torch.no_grad(), steer(merged, vectors, WEIGHT):
        expected = merged(torch.tensor([prompt])).logits
        torch.testing.assert_close(loaded(torch.tensor([prompt])).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("qwen3", {}, "normalises queries and keys"),
        ("gemma3", {}, "normalises queries and keys"),
        ("gemma2", {}, "a window of 8 tokens"),
        ("mistral", {}, "a window of 8 tokens"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 16}, "a window of 16 tokens"),
    ],
)
def test_a_family_that_cannot_be_baked_is_refused_with_the_reason(family, changes, reason, tmp_path):
    model = model_with_biases(family, **changes)
    base = saved_model(tmp_path / "base", model)
    with pytest.raises(InputError, match=f"cannot be baked: its attention .*{reason}.*use `steerlift serve`, or --format gguf"):
        baked(tmp_path, base, random_vectors(model))
    assert not (tmp_path / "baked").exists()


def test_a_checkpoint_that_lacks_a_tensor_is_refused_and_nothing_is_left(tmp_path):
    model = model_with_biases("qwen2")
    base = saved_model(tmp_path / "base", model)
    state = model.state_dict()
    del state["model.layers.1.self_attn.q_proj.bias"]
    model.save_pretrained(base, state_dict=state)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=r"layers\.1\.self_attn\.q_proj\.bias is in none of the model's files"):
        baked(tmp_path, base, random_vectors(model))
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "v.safetensors"])


def test_a_folder_that_is_not_the_steered_model_does_not_pass(tmp_path):
    model = model_with_biases("qwen2")
    vectors = random_vectors(model)
    base = saved_model(tmp_path / "base", model)
    folder = baked(tmp_path, base, vectors)
    cpu = torch.device("cpu")
    assert all(one.same_tokens == one.tokens for one in compare(str(base), folder, vectors, WEIGHT, torch.float32, cpu))
    with pytest.raises(InputError, match="the baked logits are off by"):
        compare(str(base), folder, vectors, WEIGHT + 0.1, torch.float32, cpu)


def test_a_folder_with_other_things_and_the_base_itself_are_not_overwritten(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="it is there and holds no model"):
        ExportConfig("baked", "base", tmp_path / "v.json", tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="it is the base model itself"):
        ExportConfig("baked", str(tmp_path), tmp_path / "v.json", tmp_path)
