import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from steerlift.records.errors import InputError, MissingInputError
from steerlift.steering.vectors import SteeringVectors

finite = st.floats(-1e6, 1e6, width=32)
vectors_of_four = st.dictionaries(st.integers(0, 40), st.lists(finite, min_size=4, max_size=4), min_size=1, max_size=6).map(
    lambda layers: SteeringVectors({index: torch.tensor(values) for index, values in layers.items()}, {"method": "test"})
)


def equal(one: SteeringVectors, other: SteeringVectors) -> bool:
    return list(one.layers) == list(other.layers) and all(torch.equal(one.layers[i], other.layers[i]) for i in one.layers)


@given(vectors_of_four)
@pytest.mark.parametrize("ending", [".safetensors", ".json"])
def test_saved_and_loaded_vectors_are_the_same(tmp_path_factory, ending, vectors):
    path = tmp_path_factory.mktemp("vectors") / f"v{ending}"
    vectors.save(path)
    assert equal(SteeringVectors.load(path), vectors)
    assert list(path.parent.iterdir()) == [path]


@given(vectors_of_four)
def test_increments_sum_up_to_the_vectors_again(vectors):
    total = torch.zeros(4, dtype=torch.float64)
    for index, increment in vectors.increments().layers.items():
        total += increment
        torch.testing.assert_close(total, vectors.layers[index].double(), rtol=1e-5, atol=1.0)


@given(vectors_of_four, st.integers(0, 2**31))
def test_random_vectors_have_the_same_norms_and_are_reproducible(vectors, seed):
    random = vectors.random_like(seed)
    assert random.norms() == pytest.approx(vectors.norms(), rel=1e-5)
    assert equal(random, vectors.random_like(seed))


def test_metadata_survives_safetensors(tmp_path):
    metadata = {"base_model": "some/base", "method": "increments", "seed": "3"}
    path = SteeringVectors({0: torch.ones(3)}, metadata).save(tmp_path / "v.safetensors")
    assert SteeringVectors.load(path).metadata == metadata


def test_json_has_the_originals_shape(tmp_path):
    path = SteeringVectors({1: torch.tensor([0.5, -1.0]), 0: torch.tensor([2.0, 0.0])}).save(tmp_path / "v.json")
    assert json.loads(path.read_text()) == {"0": [2.0, 0.0], "1": [0.5, -1.0]}


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ({}, "no layers"),
        ({-1: torch.ones(2)}, "layer index -1"),
        ({0: torch.ones(2, 2)}, r"shape \(2, 2\)"),
        ({0: torch.tensor([1.0, float("inf")])}, "not finite"),
        ({0: torch.ones(2), 1: torch.ones(3)}, r"different sizes \[2, 3\]"),
    ],
)
def test_impossible_vectors_are_refused(layers, reason):
    with pytest.raises(InputError, match=reason):
        SteeringVectors(layers)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("v.json", "{", "not JSON"),
        ("v.json", "[1]", "got a list"),
        ("v.json", '{"a": [1.0]}', "entry 'a'"),
        ("v.json", '{"0": ["x"]}', "entry '0'"),
        ("v.json", '{"0": [NaN]}', "entry '0'"),
        ("v.safetensors", "not one", "not a safetensors file"),
        ("v.bin", "", "expected .safetensors or .json"),
    ],
)
def test_unreadable_files_are_named(tmp_path, name, content, reason):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(InputError, match=reason) as raised:
        SteeringVectors.load(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_foreign_tensors_and_missing_files_are_named(tmp_path):
    save_file({"model.embed": torch.ones(3)}, tmp_path / "v.safetensors")
    with pytest.raises(InputError, match=r"got tensor 'model.embed', expected only layer.<index>"):
        SteeringVectors.load(tmp_path / "v.safetensors")
    with pytest.raises(MissingInputError, match="no such file"):
        SteeringVectors.load(tmp_path / "absent.safetensors")
    with pytest.raises(InputError, match="cannot save"):
        SteeringVectors({0: torch.ones(3)}).save(tmp_path / "v.txt")
