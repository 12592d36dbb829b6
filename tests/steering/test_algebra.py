import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steerlift.records.errors import InputError
from steerlift.steering.algebra import add, keep_layers, merge, project_out, scale, subtract
from steerlift.steering.vectors import SteeringVectors

numbers = st.lists(st.floats(-1e3, 1e3, width=32), min_size=4, max_size=4)
vectors_of_four = st.dictionaries(st.integers(0, 5), numbers, min_size=1, max_size=6).map(
    lambda layers: SteeringVectors({index: torch.tensor(values) for index, values in layers.items()})
)


def dense(vectors: SteeringVectors) -> torch.Tensor:
    """Layers 0 to 5 as a (6, 4) matrix; an absent layer is 0."""
    return torch.stack([vectors.layers.get(index, torch.zeros(4)) for index in range(6)]).double()


@given(vectors_of_four, vectors_of_four, st.floats(-4, 4, width=32))
def test_sums_differences_and_multiples_are_those_of_the_numbers(one, other, weight):
    close = {"rtol": 1e-6, "atol": 1e-4}
    torch.testing.assert_close(dense(add(one, other)), dense(one) + dense(other), **close)
    torch.testing.assert_close(dense(subtract(one, other)), dense(one) - dense(other), **close)
    torch.testing.assert_close(dense(scale(one, weight)), weight * dense(one), **close)
    torch.testing.assert_close(dense(merge([one, other, one], [weight, 0.5, 1.0])),
                               (weight + 1) * dense(one) + 0.5 * dense(other), **close)  # fmt: skip
    assert set(add(one, other).layers) == set(one.layers) | set(other.layers)


@given(vectors_of_four, vectors_of_four)
def test_what_is_projected_out_is_gone_and_the_rest_stays(one, other):
    rest = project_out(one, other)
    assert list(rest.layers) == list(one.layers)
    for index, vector in one.layers.items():
        if index not in other.layers or not other.layers[index].any():
            assert torch.equal(rest.layers[index], vector)
            continue
        unit = other.layers[index].double() / other.layers[index].double().norm()
        assert float(rest.layers[index].double() @ unit) == pytest.approx(0, abs=1e-3)
        taken = vector.double() - rest.layers[index].double()
        torch.testing.assert_close(taken, (taken @ unit) * unit, rtol=0, atol=1e-3)


def test_a_weight_per_layer_is_a_mask_that_keeps_the_layers():
    vectors = SteeringVectors({0: torch.ones(2), 1: torch.ones(2), 3: torch.ones(2)}, {"seed": "1"})
    scaled = scale(vectors, {0: 2.0, 3: -1.0})
    assert {index: float(vector[0]) for index, vector in scaled.layers.items()} == {0: 2.0, 1: 0.0, 3: -1.0}
    assert scaled.metadata == {"seed": "1"}
    assert list(keep_layers(vectors, [3, 0]).layers) == [0, 3]


def test_merged_metadata_is_what_all_share():
    one = SteeringVectors({0: torch.ones(2)}, {"base_model": "b", "seed": "1"})
    other = SteeringVectors({0: torch.ones(2)}, {"base_model": "b", "seed": "2"})
    assert merge([one, other], [0.5, 0.5]).metadata == {"base_model": "b", "weights": "0.5 0.5"}


def test_vectors_that_do_not_mix_are_refused():
    one = SteeringVectors({0: torch.ones(2)}, {"architecture": "llama, 2 layers"})
    with pytest.raises(InputError, match="made for 'llama, 2 layers' and for 'qwen2, 3 layers'"):
        add(one, SteeringVectors({0: torch.ones(2)}, {"architecture": "qwen2, 3 layers"}))
    with pytest.raises(InputError, match=r"hidden sizes \[2, 3\]"):
        project_out(one, SteeringVectors({0: torch.ones(3)}))
    with pytest.raises(InputError, match="got 1 vectors and 2 weights"):
        merge([one], [1.0, 2.0])
    with pytest.raises(InputError, match="layer 4 has no steering vector; expected some of 0"):
        keep_layers(one, [0, 4])


def test_a_merge_has_seen_what_any_of_its_vectors_has():
    one, other = (SteeringVectors({0: torch.ones(2)}, {"seen_problems": seen}) for seen in ("aa bb", "bb cc"))
    assert add(one, other).metadata["seen_problems"] == "aa bb cc"
