"""`--engine vllm` without a server that could be used: one line, and nothing is left behind."""

import socket
from dataclasses import replace

import pytest

from steerlift.evaluation.evaluate import evaluate
from steerlift.evaluation.samplers import LocalModels
from steerlift.records.errors import InputError, ServerError
from steerlift.records.runs import read_json
from steerlift.serving.private import create_folder, private_folder, remove_folder


@pytest.fixture(autouse=True)
def _no_key(monkeypatch):
    for name in ("STEERLIFT_API_KEY", "VLLM_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def refused(config, error, **changes) -> str:
    with pytest.raises(error) as raised:
        evaluate(replace(config, engine="vllm", **changes))
    assert not config.output_path.exists()
    line = str(raised.value)
    assert "\n" not in line
    return line


def test_no_server_of_this_user(config, unused_port):
    line = refused(config, InputError, servers=f"http://localhost:{unused_port}")
    assert line == (
        f"--engine vllm: {private_folder(unused_port) / 'key'}: no steerlift server of this user is running there;"
        " start `steerlift serve`"
    )


def test_a_server_that_was_killed_is_named(config, unused_port):
    folder = create_folder(unused_port, None)
    try:
        line = refused(config, ServerError, servers=f"http://127.0.0.1:{unused_port}")
    finally:
        remove_folder(folder)
    assert line.startswith(f"--engine vllm: http://127.0.0.1:{unused_port}/steerlift/info: ConnectError")
    assert line.endswith("; is it running?")


@pytest.mark.parametrize(
    ("servers", "message"),
    [
        ("http://192.0.2.1:8000", "http://192.0.2.1:8000 is another machine's: set STEERLIFT_API_KEY to its key"),
        ("localhost:8000", "server 'localhost:8000': expected a URL such as http://127.0.0.1:8000"),
        ("ftp://localhost:8000", "server 'ftp://localhost:8000': expected a URL such as http://127.0.0.1:8000"),
    ],
)
def test_a_server_that_cannot_be_talked_to(config, servers, message):
    assert refused(config, InputError, servers=servers) == message


@pytest.mark.parametrize("changes", [{"servers": ""}, {"servers": " , "}])
def test_no_server_named(config, changes):
    assert refused(config, InputError, **changes) == "--engine vllm: --servers names no server; expected url,url ..."


def test_completions_of_one_engine_are_not_mixed_with_those_of_another(config):
    evaluate(config)
    assert read_json(config.output_path)["settings"]["engine"] == "local"
    with pytest.raises(InputError, match=r"other settings \(engine\)"):
        evaluate(replace(config, engine="vllm"))


def test_the_local_engine_holds_one_model_at_a_time(config):
    models = LocalModels(config)
    base, _ = models.sampler(config.base_model_name)()
    again, _ = models.sampler(config.base_model_name)()
    assert again.model is base.model
    finetuned, _ = models.sampler(config.finetuned_checkpoint)()
    assert finetuned.model is not base.model
    assert models.loaded is not None
    assert models.loaded[1] is finetuned.model
    models.release()
    assert models.loaded is None
