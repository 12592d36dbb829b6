import pytest
import torch
from tiny_models import HIDDEN, LAYERS, random_prompts, tiny_model

from steerlift.records.errors import InputError
from steerlift.steering.apply import steer
from steerlift.steering.models import architecture, decoder_layers
from steerlift.steering.vectors import SteeringVectors


def vectors_for(*layers: int, scale: float = 1.0) -> SteeringVectors:
    return SteeringVectors({layer: scale * torch.randn(HIDDEN) for layer in layers})


def layer_outputs(model, ids, **options) -> list[torch.Tensor]:
    """What each decoder layer puts out, read by hooks of the test's own, after steering's hooks."""
    outputs: dict[int, torch.Tensor] = {}

    def read(index):
        def hook(module, inputs, output):
            outputs[index] = (output if isinstance(output, torch.Tensor) else output[0]).detach().clone()

        return hook

    handles = [layer.register_forward_hook(read(index)) for index, layer in decoder_layers(model).items()]
    try:
        model(ids, **options)
    finally:
        for handle in handles:
            handle.remove()
    return [outputs[index] for index in range(LAYERS)]


def test_state_is_base_plus_weight_times_vector_and_layers_below_are_untouched(family):
    ids = torch.tensor(random_prompts(9, 9))
    vectors = vectors_for(1)
    before = layer_outputs(family, ids)
    with steer(family, vectors, 0.5):
        steered = layer_outputs(family, ids)
    assert torch.equal(steered[0], before[0])
    assert torch.equal(steered[1], before[1] + 0.5 * vectors.layers[1])
    assert not torch.allclose(steered[2], before[2])
    assert all(torch.equal(a, b) for a, b in zip(layer_outputs(family, ids), before, strict=True))


def test_weight_zero_is_bit_identical(family):
    ids = torch.tensor(random_prompts(9, 9))
    plain = family(ids).logits
    vectors = vectors_for(0, 1, 2)
    with steer(family, vectors, 0.0):
        assert torch.equal(family(ids).logits, plain)
    with steer(family, vectors, [0.0, 1.0]):
        mixed = family(ids).logits
    assert torch.equal(mixed[0], plain[0])
    assert not torch.allclose(mixed[1], plain[1])


def test_a_weight_per_row_equals_each_weight_alone(family):
    ids = torch.tensor(random_prompts(7, 7, 7))
    vectors = vectors_for(0, 2)
    weights = [0.25, -1.0, 2.0]
    with steer(family, vectors, weights):
        together = family(ids).logits
    for row, weight in enumerate(weights):
        with steer(family, vectors, weight):
            torch.testing.assert_close(family(ids[row : row + 1]).logits[0], together[row], rtol=1e-4, atol=1e-4)


def test_generate_with_a_kv_cache_equals_generate_without(family):
    ids = torch.tensor(random_prompts(6))
    options = {"max_new_tokens": 12, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    with steer(family, vectors_for(0, 1, 2, scale=0.3), 1.0):
        assert torch.equal(family.generate(ids, use_cache=True, **options), family.generate(ids, use_cache=False, **options))


def test_equals_a_bias_on_the_down_projection():
    # Another way to add a constant after a layer: a bias of its MLP's last matrix.
    model = tiny_model("llama", mlp_bias=True, attention_bias=True)
    ids = torch.tensor(random_prompts(10, 10))
    vectors = vectors_for(0, 1, 2)
    with torch.no_grad(), steer(model, vectors, 0.7):
        steered = model(ids).logits
    with torch.no_grad():
        for index, vector in vectors.layers.items():
            model.model.layers[index].mlp.down_proj.bias += 0.7 * vector
        torch.testing.assert_close(model(ids).logits, steered, rtol=1e-4, atol=1e-4)


def test_gradient_checkpointing_gives_the_same_gradients(family):
    ids = torch.tensor(random_prompts(8, 8))
    vectors = vectors_for(0, 1, 2, scale=0.3)
    family.train()

    def gradients() -> list[torch.Tensor]:
        family.zero_grad()
        with steer(family, vectors, [0.5, 1.5]):
            loss = family(ids, labels=ids).loss
        loss.backward()  # after the block: recomputation must not depend on the hooks still being there
        return [parameter.grad.clone() for parameter in family.parameters() if parameter.grad is not None]

    plain = gradients()
    family.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for ours, theirs in zip(gradients(), plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_bfloat16_rounds_once(qwen2):
    model = qwen2.to(torch.bfloat16)
    ids = torch.tensor(random_prompts(5))
    vectors = vectors_for(2)
    before = layer_outputs(model, ids)[2]
    with steer(model, vectors, 0.3):
        after = layer_outputs(model, ids)[2]
    assert torch.equal(after, before + (0.3 * vectors.layers[2]).to(torch.bfloat16))


def test_everything_is_removed_after_an_error(qwen2):
    ids = torch.tensor(random_prompts(5))
    plain = qwen2(ids).logits
    with pytest.raises(RuntimeError, match="inside"), steer(qwen2, vectors_for(0), 1.0):
        raise RuntimeError("inside")
    assert torch.equal(qwen2(ids).logits, plain)
    assert not any(layer._forward_hooks for layer in decoder_layers(qwen2).values())


def test_misfits_are_refused_with_both_sides_named(qwen2):
    with (
        pytest.raises(InputError, match=r"hidden size 32, Qwen2ForCausalLM has 64"),
        steer(qwen2, SteeringVectors({0: torch.ones(32)}), 1.0),
    ):
        pass
    with pytest.raises(InputError, match=r"layer 7, Qwen2ForCausalLM has layers 0 to 2"), steer(qwen2, vectors_for(7), 1.0):
        pass
    foreign = SteeringVectors(vectors_for(0).layers, {"architecture": architecture(tiny_model("llama").config)})
    with (
        pytest.raises(InputError, match=r"made for llama, 3 layers.*this model is qwen2, 3 layers"),
        steer(qwen2, foreign, 1.0),
    ):
        pass
    with steer(qwen2, vectors_for(0), [1.0, 2.0]), pytest.raises(InputError, match="2 weights, the batch has 3 rows"):
        qwen2(torch.tensor(random_prompts(4, 4, 4)))
    with pytest.raises(InputError, match="finite"), steer(qwen2, vectors_for(0), float("nan")):
        pass
