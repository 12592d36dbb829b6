"""Mixed precision and gradient checkpointing: another way to compute the same run."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from training_runs import assert_close_runs, completions, metrics, weights
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer

from steerlift.sampling.draws import row_seed
from steerlift.sampling.local import LocalSampler
from steerlift.sampling.sampler import Request, SamplingOptions
from steerlift.steering.models import load_model, load_tokenizer
from steerlift.steering.precision import MIXED
from steerlift.training.batch import pack
from steerlift.training.learner import AdamOptions, Learner
from steerlift.training.policy_loss import our_loss
from steerlift.training.processes import Processes
from steerlift.training.train import train

CPU = torch.device("cpu")


@pytest.mark.e2e
@pytest.mark.parametrize("changes", [{}, {"lora_r": 2, "beta": 0.05, "num_iterations": 2}], ids=["weights", "adapters"])
def test_gradient_checkpointing_gives_the_same_run(config, tmp_path, changes):
    recomputed = []
    for run in (config, replace(config, gradient_checkpointing=True, output_dir=tmp_path / "checkpointing")):
        with counted_layers() as layers:
            train(replace(run, **changes))
        recomputed.append(len(layers))
    assert_close_runs(config.output_dir, tmp_path / "checkpointing")
    assert recomputed[0] == 0 < recomputed[1]


@contextmanager
def counted_layers():
    """The decoder layers that are computed within a backward pass."""
    layers = []

    def look(module, _):
        if isinstance(module, Qwen2DecoderLayer) and torch._C._current_graph_task_id() != -1:
            layers.append(module)

    hook = register_module_forward_pre_hook(look)
    try:
        yield layers
    finally:
        hook.remove()


@pytest.mark.e2e
def test_mixed_keeps_float32_weights_and_learns(config, finished):
    train(replace(config, dtype="mixed"))
    assert {tensor.dtype for tensor in weights(config.output_dir).values()} == {torch.float32}
    mixed, exact = metrics(config.output_dir), metrics(finished.output_dir)
    # The same first step, to the three digits of bfloat16; then the weights part.
    assert completions(config.output_dir, 1) != []
    assert mixed[0]["grad_norm"] == pytest.approx(exact[0]["grad_norm"], rel=0.3)
    assert mixed[0]["grad_norm"] != exact[0]["grad_norm"]
    moved = weights(config.output_dir)["model.norm.weight"] - weights(finished.output_dir)["model.norm.weight"]
    assert 0 < float(moved.abs().max()) < 0.02


def test_mixed_trains_the_policy_that_it_samples(config):
    """Sampler and update see one bfloat16 forward: their logprobs differ by its rounding, not by a different product."""
    model, tokenizer = load_model(config.model_name, CPU, MIXED.weights), load_tokenizer(config.model_name)
    learner = Learner(model, AdamOptions(1e-3), Processes(CPU, MIXED), MIXED)
    sampler = LocalSampler(model, tokenizer)
    prompts = [(5, 6, 7), (8, 9)]
    requests = [Request(prompt, tuple(row_seed(3, place) for place in range(4))) for prompt in prompts]
    sampled = learner.run(lambda _: sampler.sample(requests, SamplingOptions(1.0, 12)))
    rows = [(prompt, c) for prompt, group in zip(prompts, sampled, strict=True) for c in group]
    batch = pack([p for p, _ in rows], [c.token_ids for _, c in rows], torch.ones(8), torch.ones(8, 12), CPU)
    gradients = learner.backward([batch], our_loss(config))
    theirs = torch.tensor([logprob for _, c in rows for logprob in c.logprobs])
    ours = gradients.results[0].logprobs_N
    assert float((ours - theirs).abs().max()) < 0.1
    assert float((ours - theirs).abs().mean()) < 0.01
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
    # It is bfloat16: the same in float32 is further off than a rounding of float32.
    with torch.no_grad():
        exact = our_loss(config)(model, batch).logprobs_N
    assert 1e-4 < float((ours - exact).abs().max()) < 0.1


class WeightCasts(TorchDispatchMode):
    """Counts the copies of these tensors in another number format."""

    def __init__(self, weights):
        super().__init__()
        self.pointers = {weight.data_ptr() for weight in weights}
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default and args[0].data_ptr() in self.pointers:
            self.count += 1
        return func(*args, **(kwargs or {}))


def test_sampling_casts_a_frozen_weight_once_not_for_every_token(config):
    """As it does where all weights are trained; afterwards the frozen ones are frozen again."""
    model = load_model(config.model_name, CPU, MIXED.weights)
    weights = list(model.parameters())
    last = weights[-1].requires_grad_(True)
    for weight in weights[:-1]:
        weight.requires_grad_(False)
    learner = Learner(model, AdamOptions(1e-3), Processes(CPU, MIXED), MIXED)
    ids = torch.tensor([[5, 6, 7]])

    def casts(passes):
        with WeightCasts(weights) as seen:
            learner.run(lambda model: [model(ids).logits for _ in range(passes)])
        return seen.count

    assert casts(1) == casts(4) > 0
    assert [weight for weight in weights if weight.requires_grad] == [last]
    with pytest.raises(ZeroDivisionError):
        learner.run(lambda _: 1 / 0)
    assert [weight for weight in weights if weight.requires_grad] == [last]
