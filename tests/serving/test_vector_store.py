import json
import os
import time
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save

from steerlift.records.errors import InputError, MissingInputError
from steerlift.serving import vector_store
from steerlift.serving.private import VECTORS
from steerlift.serving.vector_store import VectorStore, parse_vectors, read_vectors, store_files
from steerlift.steering.vectors import SteeringVectors

CONFIG = SimpleNamespace(model_type="qwen2", num_hidden_layers=3, hidden_size=4, vocab_size=97)


def vectors(value=1.0, layers=(0, 2), size=4, **metadata):
    return SteeringVectors({index: torch.full((size,), value + index) for index in layers}, metadata)


@pytest.fixture
def store(tmp_path):
    (tmp_path / VECTORS).mkdir()
    return VectorStore(tmp_path)


def test_what_is_put_is_read_back_by_its_digest(store, tmp_path):
    digest = store.put("name", vectors(), CONFIG, "m")

    read = read_vectors(tmp_path, digest)

    assert store.digest_of("name") == digest
    assert {index: vector.tolist() for index, vector in read.layers.items()} == {0: [1.0] * 4, 2: [3.0] * 4}


def test_a_name_can_be_given_away_and_back_while_its_old_vectors_stay(store, tmp_path):
    first = store.put("name", vectors(1.0), CONFIG, "m")
    second = store.put("name", vectors(5.0), CONFIG, "m")
    assert store.digest_of("name") == second != first
    assert store.put("other", vectors(1.0), CONFIG, "m") == first

    store.forget("name")

    with pytest.raises(MissingInputError, match="no vector is named 'name'; this server has: other"):
        store.digest_of("name")
    for digest in (first, second):
        assert read_vectors(tmp_path, digest).hidden_size == 4
    assert VectorStore(tmp_path).names() == store.names() == {"other": first}


@pytest.mark.parametrize("name", ["", ".hidden", "../up", "a/b", "a b", "é", "a" * 101, "a\n"])
def test_a_bad_name_is_refused(store, name):
    with pytest.raises(InputError, match="vector name"):
        store.put(name, vectors(), CONFIG, "m")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (vectors(size=5), "hidden size 5, m has 4"),
        (vectors(layers=(3,)), "for layer 3, m has layers 0 to 2"),
        (vectors(architecture="llama, 3 layers"), "made for llama"),
        (vectors(1e7), "a value is 1e"),
    ],
)
def test_vectors_of_another_model_are_refused(store, given, reason):
    with pytest.raises(InputError, match=reason):
        store.put("name", given, CONFIG, "m")
    assert store.names() == {}


def test_a_full_store_says_so(store, monkeypatch):
    monkeypatch.setattr(vector_store, "MOST_BYTES", 300)
    store.put("a", vectors(1.0), CONFIG, "m")
    with pytest.raises(InputError, match="the server already holds"):
        store.put("b", vectors(2.0), CONFIG, "m")
    assert list(store.names()) == ["a"]


def test_what_has_had_no_name_for_an_hour_makes_room_when_the_store_is_full(store, tmp_path, monkeypatch):
    def left_an_hour_ago(digest):
        path = tmp_path / VECTORS / f"{digest}.safetensors"
        os.utime(path, (time.time() - vector_store.NAMELESS_SECONDS - 1,) * 2)

    size = len(vectors().content())
    monkeypatch.setattr(vector_store, "MOST_BYTES", 4 * size)
    kept, *steps = [store.put(name, vectors(value), CONFIG, "m") for name, value in (("kept", 9.0), ("now", 1.0), ("now", 2.0))]
    latest = store.put("now", vectors(3.0), CONFIG, "m")
    left_an_hour_ago(kept)
    with pytest.raises(InputError, match=f"already holds {4 * size} bytes of vectors, expected at most {4 * size}"):
        store.put("now", vectors(4.0), CONFIG, "m")

    left_an_hour_ago(steps[1])
    newest = store.put("now", vectors(4.0), CONFIG, "m")

    files = {path.stem for path in (tmp_path / VECTORS).glob("*.safetensors")}
    assert files == {kept, steps[0], latest, newest}


def test_an_hour_without_a_name_begins_when_the_name_goes(store, tmp_path, monkeypatch):
    size = len(vectors().content())
    monkeypatch.setattr(vector_store, "MOST_BYTES", size)
    digest = store.put("long", vectors(1.0), CONFIG, "m")
    os.utime(tmp_path / VECTORS / f"{digest}.safetensors", (0, 0))
    store.forget("long")
    with pytest.raises(InputError, match="already holds"):
        store.put("next", vectors(2.0), CONFIG, "m")
    assert read_vectors(tmp_path, digest).hidden_size == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_an_upload_of_any_float_type_is_taken(dtype):
    parsed = parse_vectors(save({"layer.1": torch.ones(4, dtype=dtype)}, {"architecture": "x"}))

    assert parsed.layers[1].tolist() == [1.0] * 4
    assert parsed.metadata == {"architecture": "x"}


def _header(content):
    header = json.dumps(content).encode()
    return len(header).to_bytes(8, "little") + header


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a safetensors file"),
        (b"garbage" * 100, "not a safetensors file"),
        ((2**62).to_bytes(8, "little") + b"{}", "not a safetensors file"),
        (_header([]), "not a safetensors file"),
        (_header({"layer.0": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}), "not a safetensors file"),
        (_header({"layer.0": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}), "not a safetensors file"),
        (save({}), "got no layers"),
        (save({"other": torch.ones(4)}), "got tensor 'other'"),
        (save({"layer.-1": torch.ones(4)}), "got tensor 'layer.-1'"),
        (save({"layer.01": torch.ones(4)}), "got tensor 'layer.01'"),
        (save({"layer.0": torch.ones(4, dtype=torch.int64)}), "layer.0 holds torch.int64"),
        (save({"layer.0": torch.ones(2, 2)}), "has shape"),
        (save({"layer.0": torch.tensor([1.0, float("nan")])}), "not finite"),
        (save({"layer.0": torch.ones(4), "layer.1": torch.ones(5)}), "different sizes"),
    ],
)
def test_garbage_is_refused_in_one_line(content, reason):
    with pytest.raises(InputError, match=reason) as error:
        parse_vectors(content)
    assert "\n" not in str(error.value)


def test_a_worker_reads_nothing_but_whole_files_of_the_folder(store, tmp_path):
    digest = store.put("name", vectors(), CONFIG, "m")
    path = tmp_path / VECTORS / f"{digest}.safetensors"
    for name in ("../key", "", digest.upper(), digest[:-1]):
        with pytest.raises(InputError, match="expected the digest"):
            read_vectors(tmp_path, name)
    path.write_bytes(save({"layer.0": torch.zeros(4)}))
    with pytest.raises(InputError, match="other content"):
        read_vectors(tmp_path, digest)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="expected a plain file"):
        read_vectors(tmp_path, digest)


def test_files_named_on_the_command_line_are_stored(tmp_path, qwen2):
    qwen2.save_pretrained(tmp_path / "model")
    (tmp_path / VECTORS).mkdir()
    files = {name: vectors(size=64).save(tmp_path / f"v{ending}") for name, ending in (("a", ".safetensors"), ("b", ".json"))}

    store_files(tmp_path, files, str(tmp_path / "model"))

    names = VectorStore(tmp_path).names()
    assert set(names) == {"a", "b"}
    assert names["a"] == names["b"]
    with pytest.raises(InputError, match="hidden size 4"):
        store_files(tmp_path, {"c": vectors().save(tmp_path / "c.json")}, str(tmp_path / "model"))
