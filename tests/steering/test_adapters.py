import copy
import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from small_pipeline import RECIPE, problem_file, saved, tokenizer, trained
from tiny_models import random_prompts, tiny_model
from transformers import AutoModelForCausalLM

from steerlift.evaluation.config import EvaluateConfig
from steerlift.evaluation.evaluate import evaluate
from steerlift.extraction.config import ExtractConfig
from steerlift.extraction.extract import extract
from steerlift.records.errors import InputError, MissingDependencyError, MissingInputError
from steerlift.records.runs import Journal, completions_path
from steerlift.steering.models import (
    Model,
    architecture,
    check_same_architecture,
    checked_name,
    decoder_layers,
    load_config,
    load_model,
    load_tokenizer,
)

CPU = torch.device("cpu")


def adapter_folder(folder: Path, model: Model, base: str, scale: float = 0.1, **options) -> str:
    """A LoRA adapter of random weights for `model`, which is used up, saved as one of the model at `base`."""
    config = LoraConfig(r=4, task_type="CAUSAL_LM", **{"target_modules": "all-linear", **options})
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # of adapters of tied weights
        torch.manual_seed(7)
        adapted = get_peft_model(model, config)
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter += scale * torch.randn_like(parameter)
        adapted.peft_config["default"].base_model_name_or_path = base
        adapted.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def folders(tmp_path) -> tuple[str, str]:
    """A tiny base model and an adapter of it."""
    model = tiny_model("qwen2")
    model.save_pretrained(tmp_path / "base")
    return str(tmp_path / "base"), adapter_folder(tmp_path / "adapter", model, str(tmp_path / "base"))


def logits(model: Model) -> torch.Tensor:
    ids = torch.arange(3, 27).reshape(2, 12)
    with torch.no_grad():
        return model(ids).logits


def unmerged_logits(base: str, adapter: str) -> torch.Tensor:
    """Those of peft's own model, which computes base and adapter side by side."""
    whole = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # of adapters of tied weights
        return logits(PeftModel.from_pretrained(whole, adapter).eval())


def assert_same_logits(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert float((ours - theirs).abs().max()) < 1e-5 * float(theirs.abs().max())


@pytest.mark.parametrize("family", ["qwen2", "llama", "gemma2", "gemma3"])
def test_an_adapter_is_loaded_as_an_ordinary_model_with_its_weights_merged(tmp_path, family):
    base, adapter = str(tmp_path / "base"), tmp_path / "adapter"
    model = tiny_model(family)
    model.save_pretrained(base)
    adapter_folder(adapter, model, base)
    expected = unmerged_logits(base, str(adapter))
    merged = load_model(str(adapter), CPU, torch.float32)
    assert_same_logits(logits(merged), expected)
    assert float((logits(load_model(base, CPU, torch.float32)) - expected).abs().max()) > 0.1
    # Nothing of peft is left, and everything can be trained on.
    assert type(merged).__module__.startswith("transformers.")
    assert not any("lora" in name for name, _ in merged.named_modules())
    assert all(parameter.requires_grad for parameter in merged.parameters())
    assert not merged.training
    merged.save_pretrained(tmp_path / "merged")
    again = load_model(str(tmp_path / "merged"), CPU, torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), merged.parameters(), strict=True))


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ],
)
def test_a_head_that_was_one_with_the_embeddings_is_changed_alone(tmp_path, options):
    base, model = str(tmp_path / "base"), tiny_model("qwen2", tie_word_embeddings=True)
    model.save_pretrained(base)
    adapter = adapter_folder(tmp_path / "adapter", model, base, **options)
    expected = unmerged_logits(base, adapter)
    merged = load_model(adapter, CPU, torch.float32)
    assert_same_logits(logits(merged), expected)
    merged.save_pretrained(tmp_path / "merged")
    assert_same_logits(logits(load_model(str(tmp_path / "merged"), CPU, torch.float32)), expected)


def test_an_adapter_that_would_change_a_tied_weight_twice_is_refused(tmp_path):
    base, model = str(tmp_path / "base"), tiny_model("qwen2", tie_word_embeddings=True)
    model.save_pretrained(base)
    adapter = adapter_folder(tmp_path / "adapter", model, base, target_modules=["embed_tokens"], ensure_weight_tying=True)
    with pytest.raises(
        InputError, match=f"adapter {adapter} cannot be merged: Model with `tie_word_embeddings=True`"
    ) as raised:
        load_model(adapter, CPU, torch.float32)
    assert "\n" not in str(raised.value)


def test_its_configuration_is_that_of_its_base(folders, tmp_path):
    base, adapter = folders
    assert architecture(load_config(adapter)) == architecture(load_config(base))
    check_same_architecture(base, adapter)
    tiny_model("llama").save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match=f"^{adapter} is qwen2, 3 layers.*; {tmp_path / 'other'} is llama, 3 layers"):
        check_same_architecture(str(tmp_path / "other"), adapter)


def test_its_tokenizer_is_its_own_or_else_its_bases(tmp_path):
    base = saved(tmp_path / "base", trained("base"))
    adapter = adapter_folder(tmp_path / "adapter", copy.deepcopy(trained("base")), base)
    text = "<think>12+7</think> Ann has"
    from_base = load_tokenizer(adapter)
    assert from_base.encode(text) == load_tokenizer(base).encode(text) == tokenizer().encode(text)
    own = load_tokenizer(base)
    own.add_tokens(["Ann"])
    own.save_pretrained(adapter)
    loaded = load_tokenizer(adapter)
    assert loaded.encode(text) == own.encode(text) != from_base.encode(text)
    assert type(loaded) is type(from_base)
    assert (loaded.padding_side, loaded.pad_token_id) == (from_base.padding_side, from_base.pad_token_id)


def test_a_relative_base_is_looked_for_in_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = tiny_model("qwen2")
    model.save_pretrained("models/base")
    adapter_folder(Path("adapters/one"), model, "models/base")
    assert checked_name("adapters/one") == "adapters/one"
    assert len(decoder_layers(load_model("adapters/one", CPU, torch.float32))) == 3
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(
        MissingInputError, match=r"^adapter ../adapters/one: its base model models/base cannot be loaded: "
    ) as raised:
        load_model("../adapters/one", CPU, torch.float32)
    assert "\n" not in str(raised.value)


@pytest.mark.e2e
def test_a_hub_id_can_be_an_adapter_too(tmp_path):
    """From the hub's cache, as it lies there after a download."""

    def cached(repository: str) -> Path:
        folder = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text("0" * 40)
        return folder / "snapshots" / ("0" * 40)

    base = saved(cached("me/base"), trained("base"))
    adapter = adapter_folder(cached("me/adapter"), copy.deepcopy(trained("base")), "me/base")
    script = (
        "import sys, torch; from steerlift.steering.models import load_model, load_tokenizer; "
        "model = load_model('me/adapter', torch.device('cpu'), torch.float32); "
        "model.save_pretrained(sys.argv[1]); load_tokenizer('me/adapter').save_pretrained(sys.argv[1])"
    )
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", script, tmp_path / "merged"], env=environment, check=True)
    edit(adapter, base_model_name_or_path=base)
    theirs, ours = (load_model(str(folder), CPU, torch.float32) for folder in (adapter, tmp_path / "merged"))
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert load_tokenizer(str(tmp_path / "merged")).get_vocab() == tokenizer().get_vocab()


@pytest.mark.e2e
def test_steering_vectors_and_scores_are_those_of_the_merged_model(tmp_path):
    base, problems = saved(tmp_path / "base", trained("base")), problem_file(tmp_path)
    adapter = adapter_folder(tmp_path / "adapter", copy.deepcopy(trained("base")), base, scale=0.05)
    merged = saved(tmp_path / "merged", load_model(adapter, CPU, torch.float32))
    options = {"problems": problems, "max_completion_length": 8}
    found = {}
    for checkpoint in (adapter, merged):
        path = Path(f"{checkpoint}.safetensors")
        vectors = extract(ExtractConfig(base, checkpoint, path, train_size=6, **options)).vectors
        assert min(vectors.norms().values()) > 0.1
        config = EvaluateConfig(base, checkpoint, path, Path(f"{checkpoint}.scores.json"), eval_size=4, num_completions_eval=2)
        results = evaluate(replace(config, weights=(1.0,), **options))
        scores = [results[arm] for arm in ("base_model", "finetuned_model", "base_with_steering")]
        rows = Journal(completions_path(config.output_path)).read()[1:]
        found[checkpoint] = ([vectors.layers[layer].tolist() for layer in range(RECIPE.layers)], scores, rows)
    assert found[adapter] == found[merged]


def test_an_adapters_model_can_be_trained(folders):
    model = load_model(folders[1], CPU, torch.float32)
    model(torch.tensor(random_prompts(5)), labels=torch.tensor(random_prompts(5))).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def edit(adapter: str, **changes) -> None:
    path = Path(adapter) / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rewrite(adapter: str, change) -> None:
    path = Path(adapter) / "adapter_model.safetensors"
    save_file({key: change(tensor) for key, tensor in load_file(path).items()}, path)


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (
            lambda adapter: edit(adapter, base_model_name_or_path="./absent"),
            MissingInputError,
            "adapter ADAPTER: its base model ./absent: no such folder; expected a folder with a saved model, or a hub id",
        ),
        (
            lambda adapter: edit(adapter, base_model_name_or_path=adapter),
            MissingInputError,
            "adapter ADAPTER: its base model ADAPTER: a folder without config.json",
        ),
        (lambda adapter: edit(adapter, base_model_name_or_path=None), InputError, "adapter ADAPTER names no base model"),
        (lambda adapter: (Path(adapter) / "adapter_config.json").write_text("{"), InputError, "is not JSON"),
        (
            lambda adapter: (Path(adapter) / "config.json").write_text("{}"),
            InputError,
            "model ADAPTER holds a whole model and an adapter",
        ),
    ],
)
def test_an_adapter_without_its_base_is_one_line_before_anything_is_loaded(folders, damage, error, message):
    adapter = folders[1]
    damage(adapter)
    for read in (checked_name, load_config, load_tokenizer, lambda name: load_model(name, CPU, torch.float32)):
        with pytest.raises(error) as raised:
            read(adapter)
        assert message.replace("ADAPTER", adapter) in str(raised.value)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda adapter: (Path(adapter) / "adapter_model.safetensors").unlink(), InputError, "cannot be used"),
        (
            lambda adapter: (Path(adapter) / "adapter_model.safetensors").write_bytes(b"damaged"),
            InputError,
            "cannot be used",
        ),
        (lambda adapter: rewrite(adapter, lambda tensor: tensor * float("nan")), InputError, "NaN"),
        (lambda adapter: rewrite(adapter, lambda tensor: tensor[:, :3].clone()), InputError, "do not fit Qwen2ForCausalLM"),
        (lambda adapter: edit(adapter, target_modules=["q_proj"]), InputError, "do not fit Qwen2ForCausalLM"),
        (lambda adapter: edit(adapter, target_modules=["nowhere"]), InputError, "nowhere"),
        (lambda adapter: edit(adapter, peft_type="NEWER"), InputError, "NEWER"),
    ],
)
def test_an_adapter_that_cannot_be_merged_is_one_line(folders, damage, error, message):
    damage(folders[1])
    with pytest.raises(error) as raised:
        load_model(folders[1], CPU, torch.float32)
    assert folders[1] in str(raised.value)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_adapter_of_another_depth_is_not_merged_in_part(folders, tmp_path):
    tiny_model("qwen2", num_hidden_layers=2).save_pretrained(tmp_path / "shallow")
    edit(folders[1], base_model_name_or_path=str(tmp_path / "shallow"))
    with pytest.raises(
        InputError, match=r"of its tensors do not fit Qwen2ForCausalLM \(.*layers\.2\..*\); expected an adapter that"
    ):
        load_model(folders[1], CPU, torch.float32)


def test_a_prompt_is_no_weight(folders, tmp_path):
    prompt = get_peft_model(tiny_model("qwen2"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    prompt.peft_config["default"].base_model_name_or_path = folders[0]
    prompt.save_pretrained(tmp_path / "prompt")
    with pytest.raises(InputError, match=r"prompt is of type PROMPT_TUNING, which no weights can hold; expected LoRA"):
        load_model(str(tmp_path / "prompt"), CPU, torch.float32)


def test_without_peft_an_adapter_says_what_to_install(folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)  # as if it were not installed
    with pytest.raises(MissingDependencyError, match=r"is an adapter, which needs peft: pip install 'steerlift\[lora\]'$"):
        load_model(folders[1], CPU, torch.float32)
    assert architecture(load_config(folders[1])) == architecture(load_config(folders[0]))
