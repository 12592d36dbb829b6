"""Weights on their way to a server: what is saved, in which order it is asked, and what is left when something fails."""

import os
import subprocess
import sys

import pytest
import torch
from limits import full_disk
from safetensors.torch import load_file
from small_server import SmallServer
from tiny_models import tiny_model

from steerlift.records.errors import InputError, ServerError
from steerlift.sampling.hand_over import give_weights, save_weights, scratch_folder, weight_version
from steerlift.sampling.server import Server

GIVEN = [
    "POST /init_weight_transfer_engine",
    "POST /start_weight_update",
    "POST /finish_weight_update",
    "POST /pause",
    "POST /start_weight_update",
    "POST /update_weights",
    "POST /finish_weight_update",
    "POST /reset_prefix_cache",
    "POST /resume",
]


@pytest.fixture
def small():
    with SmallServer().running() as running:
        yield running


@pytest.fixture
def saved(tmp_path):
    (tmp_path / "weights").mkdir()
    save_weights({"a": torch.ones(2)}, tmp_path / "saved.safetensors")
    return tmp_path / "saved.safetensors"


@pytest.mark.parametrize("tied", [True, False])
def test_every_weight_is_saved_once(tmp_path, tied):
    weights = tiny_model("qwen2", tie_word_embeddings=tied).state_dict()
    save_weights(weights, tmp_path / "w.safetensors")
    read = load_file(tmp_path / "w.safetensors")
    assert weights.keys() - read.keys() == ({"lm_head.weight"} if tied else set())
    for name, tensor in read.items():
        assert torch.equal(tensor, weights[name])


def test_a_file_that_a_server_still_reads_is_not_written_over(saved):
    os.link(saved, saved.with_name("linked"))
    save_weights({"a": torch.zeros(2)}, saved)
    assert load_file(saved)["a"].tolist() == [0, 0]
    assert load_file(saved.with_name("linked"))["a"].tolist() == [1, 1]


def test_no_room_for_the_weights_is_one_line(tmp_path):
    with full_disk(1000), pytest.raises(InputError, match="a copy of the weights has to fit there") as raised:
        save_weights({"a": torch.ones(1000)}, tmp_path / "w.safetensors")
    assert "\n" not in str(raised.value)


def test_an_update_is_marked_before_it_begins_and_named_when_it_is_done(small, saved, tmp_path):
    give_weights(Server(small.url, "k"), tmp_path / "weights", saved, "version 3")
    assert small.paths == GIVEN
    assert list((tmp_path / "weights").iterdir()) == []
    assert saved.exists()


def test_an_update_that_was_left_open_is_closed_first(small, saved, tmp_path):
    small.answers["/start_weight_update"] = (500, {"error": {"message": "an update is under way"}})
    with pytest.raises(ServerError, match="an update is under way"):
        give_weights(Server(small.url, "k"), tmp_path / "weights", saved, "v")
    assert small.paths[1:4] == ["POST /start_weight_update", "POST /finish_weight_update", "POST /start_weight_update"]
    assert "POST /pause" not in small.paths


@pytest.mark.parametrize("failing", ["/update_weights", "/reset_prefix_cache"])
def test_a_server_that_fails_in_an_update_is_not_left_waiting(small, saved, tmp_path, failing):
    small.answers[failing] = (500, {"error": {"message": "out of memory"}})
    with pytest.raises(ServerError, match=f"{failing} answered 500: out of memory"):
        give_weights(Server(small.url, "k"), tmp_path / "weights", saved, "v")
    assert small.paths == [*GIVEN[: GIVEN.index(f"POST {failing}") + 1], "POST /resume"]
    assert list((tmp_path / "weights").iterdir()) == []


def test_a_server_whose_folder_is_gone_is_one_that_fails(small, saved, tmp_path):
    with pytest.raises(ServerError, match="is the server that made this folder gone"):
        give_weights(Server(small.url, "k"), tmp_path / "absent", saved, "v")
    assert small.paths == []


def test_the_version_is_what_the_server_says(small):
    small.answers["/weight_info"] = (200, {"weight_version": "default"})
    assert weight_version(Server(small.url, "k")) == "default"
    small.answers["/weight_info"] = (200, b"nonsense")
    with pytest.raises(ServerError, match="no JSON object"):
        weight_version(Server(small.url, "k"))


def test_what_a_killed_process_was_handing_over_is_removed(small, saved, tmp_path):
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    folder = tmp_path / "weights"
    (folder / f"0123-{process.pid}.safetensors").write_bytes(b"14 GB")
    kept = {folder / f"0123-{os.getppid()}.safetensors", folder / "somebody's.safetensors"}
    for path in kept:
        path.touch()
    give_weights(Server(small.url, "k"), folder, saved, "v")
    assert set(folder.iterdir()) == kept


def test_copies_of_processes_that_died_are_removed_and_no_others(tmp_path):
    server = tmp_path / "steerlift-0-8000"
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    (tmp_path / f"steerlift-weights-{process.pid}-abc").mkdir()
    (tmp_path / f"steerlift-weights-{process.pid}-abc" / "policy.safetensors").write_bytes(b"14 GB")
    kept = [server, tmp_path / "steerlift-weights-mine", tmp_path / f"steerlift-weights-{os.getpid()}-x", tmp_path / "other"]
    for folder in kept:
        folder.mkdir()
    made = scratch_folder(server)
    assert sorted(tmp_path.iterdir()) == sorted([*kept, made])
    assert made.stat().st_mode & 0o077 == 0
