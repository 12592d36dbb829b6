import json

import pytest

from steerlift.records.errors import InputError, MissingDependencyError
from steerlift.serving import server
from steerlift.serving.command import environment, server_command
from steerlift.serving.config import ServeConfig
from steerlift.serving.private import FOLDER_VARIABLE


def options(config, on_cpu=False):
    """The flags of vLLM's command line and their values."""
    command = server_command(config, on_cpu)[3:]
    return {
        flag: command[i + 1] if i + 1 < len(command) and not command[i + 1].startswith("--") else True
        for i, flag in enumerate(command)
        if flag.startswith("--")
    }


def test_all_of_the_original_s_flags_reach_vllm():
    given = {
        "model": "m",
        "port": 9,
        "host": "localhost",
        "dtype": "bfloat16",
        "tensor_parallel_size": 2,
        "data_parallel_size": 3,
        "gpu_memory_utilization": 0.5,
        "max_model_len": 512,
        "kv_cache_dtype": "fp8",
        "revision": "r",
    }
    flags = options(
        ServeConfig(**given, enable_prefix_caching=False, enforce_eager=True, trust_remote_code=True, log_level="error")
    )

    assert {f"--{name.replace('_', '-')}": str(value) for name, value in given.items()}.items() <= flags.items()
    assert flags["--uvicorn-log-level"] == "error"
    assert flags["--enforce-eager"] is flags["--trust-remote-code"] is flags["--no-enable-prefix-caching"] is True


def test_the_guard_and_the_plugin_are_always_there():
    flags = options(ServeConfig("m"))

    assert flags["--middleware"] == "steerlift.serving.guard.Guard"
    assert flags["--logits-processors"] == "steerlift.serving.steering_rows:SteeringRows"
    assert flags["--allowed-origins"] == "[]"
    assert "steerlift" in json.loads(flags["--additional-config"])


def test_a_gpu_gets_graphs_that_steering_can_see_and_a_cpu_exact_numbers():
    assert json.loads(options(ServeConfig("m"))["--compilation-config"]) == {"cudagraph_mode": "PIECEWISE"}
    assert "--compilation-config" not in options(ServeConfig("m", enforce_eager=True))
    assert options(ServeConfig("m"))["--dtype"] == "auto"
    on_cpu = options(ServeConfig("m"), on_cpu=True)
    assert "--compilation-config" not in on_cpu
    assert on_cpu["--dtype"] == "float32"


@pytest.mark.parametrize(("kind", "backend"), [("file", "steerlift_file"), ("nccl", "nccl"), ("none", None)])
def test_weights_are_taken_as_asked_and_otherwise_the_development_paths_are_off(kind, backend, tmp_path):
    config = ServeConfig("m", weight_transfer=kind)

    given = options(config).get("--weight-transfer-config")

    assert (json.loads(given)["backend"] if given else None) == backend
    assert environment(config, tmp_path, True, {})["VLLM_SERVER_DEV_MODE"] == ("1" if backend else "0")


def test_the_environment_keeps_the_user_s_choices_and_drops_the_key(tmp_path):
    own = {"VLLM_API_KEY": "k", "STEERLIFT_API_KEY": "k", "VLLM_CPU_KVCACHE_SPACE": "7", "VLLM_PLUGINS": "mine", "X": "y"}

    result = environment(ServeConfig("m"), tmp_path, True, own)

    assert "k" not in result.values()
    assert result["VLLM_CPU_KVCACHE_SPACE"] == "7"
    assert result["VLLM_PLUGINS"] == "mine,steerlift"
    assert result["X"] == "y"
    assert result[FOLDER_VARIABLE] == str(tmp_path)
    assert "VLLM_CPU_KVCACHE_SPACE" not in environment(ServeConfig("m"), tmp_path, False, {})


@pytest.fixture
def with_vllm(monkeypatch):
    # The refusals come before vLLM is started, wherever these tests run.
    monkeypatch.setattr(server, "find_spec", lambda name: name)
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    monkeypatch.delenv("STEERLIFT_API_KEY", raising=False)


def test_without_vllm_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(server, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="pip install vllm"):
        server.serve(ServeConfig("m"))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.5"])
def test_an_address_for_others_demands_a_key(host, with_vllm):
    with pytest.raises(InputError, match="set VLLM_API_KEY"):
        server.serve(ServeConfig("m", host=host))


@pytest.mark.parametrize("key", ["short", "with space", "schlüssel-lang", "line\nbreak-long"])
def test_a_key_that_no_header_can_carry_is_refused(key, with_vllm, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", key)
    with pytest.raises(InputError, match="VLLM_API_KEY: expected at least 8 printable ASCII"):
        server.serve(ServeConfig("m"))


@pytest.mark.parametrize("entries", [("v",), ("=p",), ("v=",), ("v=p", "v=q")])
def test_vectors_need_a_name_and_a_path(entries, with_vllm):
    with pytest.raises(InputError, match="expected NAME=PATH, each name once"):
        server.serve(ServeConfig("m", vectors=entries))


def test_a_taken_port_is_told_at_once(with_vllm):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match="stop what listens there or choose another"):
            server.serve(ServeConfig("m", port=taken.getsockname()[1]))
