"""Low-rank adapters: nothing else is trained, and what is saved is one model in two shapes."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from small_pipeline import saved, tokenizer, trained
from training_runs import metrics, weights

from steerlift.steering.models import load_model
from steerlift.steering.precision import Precision
from steerlift.training.batch import pack
from steerlift.training.checkpoints import adapter_path, checkpoint_path, save_checkpoint
from steerlift.training.learner import AdamOptions, Learner
from steerlift.training.lora import add_adapters
from steerlift.training.policy_loss import batch_logprobs
from steerlift.training.processes import Processes
from steerlift.training.reference import Reference
from steerlift.training.train import train

LoraLayer = pytest.importorskip("peft.tuners.lora", reason="peft is not installed: pip install 'steerlift[lora]'").LoraLayer
CPU, PRECISION = torch.device("cpu"), Precision(torch.float32, None)
IDS = torch.arange(2, 42).view(4, 10)
ADAPTED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def gpt2():
    """Its linear layers are Conv1D, which keep their weights transposed."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    end = tokenizer().eos_token_id
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
    return GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer()), bos_token_id=end, eos_token_id=end, **sizes))


def adapted(model, rank: int = 3):
    """With adapters that change what the model computes."""
    model = add_adapters(model, rank, None)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def load(folder) -> torch.nn.Module:
    return load_model(str(folder), CPU, torch.float32)


def weights_of(folder, name: str = "model.safetensors") -> dict[str, torch.Tensor]:
    return load_file(folder / name)


def test_only_the_adapters_learn(config, prepared, capsys):
    train(replace(config, lora_r=2, num_train_iters=2, num_iterations=2))
    assert f"training adapters of {config.model_name} (float32" in capsys.readouterr().err
    before, after = (weights_of(folder) for folder in (prepared / "base", checkpoint_path(config.output_dir, 2)))
    moved = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert moved == {name for name in before if name.endswith(".weight") and name.split(".")[-2] in ADAPTED}
    for name in moved:
        change = after[name] - before[name]
        assert torch.linalg.matrix_rank(change, atol=1e-6) <= 2, name
    trainable = {name for name, p in add_adapters(load(prepared / "base"), 2, None).named_parameters() if p.requires_grad}
    assert trainable
    assert all(".lora_" in name for name in trainable)
    state = {name.split("|")[0] for name in weights_of(checkpoint_path(config.output_dir, 2), "training_state.safetensors")}
    assert state == {f"model.{name}" for name in trainable}


def test_new_adapters_change_nothing_and_count_as_often_as_asked(prepared):
    base = logits(load(prepared / "base"))
    torch.testing.assert_close(logits(add_adapters(load(prepared / "base"), 4, None)), base, rtol=0, atol=1e-6)
    scalings = []
    for alpha in (None, 2.0):
        layers = [m for m in add_adapters(load(prepared / "base"), 4, alpha).modules() if isinstance(m, LoraLayer)]
        scalings.append({layer.scaling["default"] for layer in layers})
    assert scalings == [{2.0}, {0.5}]


@pytest.mark.parametrize("kind", ["qwen2", "gpt2"])
def test_the_checkpoint_is_the_model_with_its_adapters_merged(tmp_path, kind):
    base = saved(tmp_path / "base", trained("base") if kind == "qwen2" else gpt2())
    model = adapted(load(base))
    expected = logits(model)
    assert float((expected - logits(load(base))).abs().max()) > 0.1
    folder = save_checkpoint(tmp_path / "checkpoint_step_1", model, tokenizer())
    assert torch.equal(logits(model), expected)  # saving does not touch the model
    for loaded in (load(folder), load(adapter_path(folder)), add_adapters(load(base), 3, None, adapter_path(folder))):
        torch.testing.assert_close(logits(loaded.eval()), expected, rtol=0, atol=1e-5)
    # An ordinary folder, its embeddings tied as they were.
    assert set(weights_of(folder)) == set(weights_of(tmp_path / "base"))
    loaded = load(folder)
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight


def test_gpt2_learns_by_adapters(config, tmp_path):
    name = saved(tmp_path / "gpt2", gpt2())
    short = {"num_train_iters": 1, "max_completion_length": 1}
    train(replace(config, model_name=name, lora_r=2, beta=0.1, rewards=("training_rewards:by_token",), **short))
    assert metrics(config.output_dir)[0]["grad_norm"] > 0
    before, after = weights_of(tmp_path / "gpt2"), weights(config.output_dir)
    moved = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert {name.split(".")[-2] for name in moved} == {"c_attn", "c_proj", "c_fc"}


def test_the_reference_is_the_model_without_its_adapters(prepared):
    model = adapted(load(prepared / "base"))
    learner = Learner(model, AdamOptions(1e-3), Processes(CPU, PRECISION), PRECISION)
    batch = pack([(5, 6, 7), (8, 9)], [(10, 11), (12,)], torch.ones(2), torch.ones(2, 2), CPU)
    (known,) = Reference(learner).with_logprobs([batch], 0.7)
    expected = batch_logprobs(load(prepared / "base"), batch, 0.7)
    torch.testing.assert_close(known.reference_logprobs_N, expected, rtol=0, atol=1e-6)
    assert float((batch_logprobs(model, batch, 0.7) - expected).abs().max()) > 0.1
    assert not known.reference_logprobs_N.requires_grad


@pytest.mark.e2e
def test_a_run_is_held_to_the_model_that_it_began_with(config):
    train(replace(config, lora_r=4, beta=0.5, learning_rate=2e-2))
    kl = [line["kl"] for line in metrics(config.output_dir)]
    assert kl[0] == pytest.approx(0, abs=1e-6)  # new adapters are nothing
    assert min(kl[1:]) > 1e-3
