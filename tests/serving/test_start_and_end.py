"""The server's own life: compiled, ended by signals, ended by itself; nothing of it may be left behind."""

import importlib.util
import signal
import time

import psutil
import pytest
from served import NEW_TOKENS, expected, mixed_requests, saved_model, served_model, two_vectors
from server_processes import free_port, start_server, wait_until_gone, wait_until_ready

from steerlift.serving.private import create_folder, private_folder, remove_folder

NO_VLLM = "vLLM is not installed: make test-serving"
httpx = pytest.importorskip("httpx", reason=NO_VLLM)
pytestmark = [pytest.mark.e2e, pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason=NO_VLLM)]


def family_of(process):
    parent = psutil.Process(process.pid)
    return [parent, *parent.children(recursive=True)]


def check_all_gone(processes, port):
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []
    wait_until_gone(private_folder(port))
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False)


def test_a_compiled_server_steers_with_the_user_s_key_and_ends_when_asked(tmp_path, monkeypatch):
    model = served_model("qwen2")
    port, requests = free_port(), mixed_requests(8)
    first = two_vectors()["first"].save(tmp_path / "first.json")
    second = two_vectors()["second"].save(tmp_path / "second.safetensors")
    flags = ["--max-model-len", "512", "--vectors", f"first={first}", "--vectors", f"second={second}"]
    process = start_server(tmp_path, port, *flags, model=str(saved_model(tmp_path / "model", model)), key="the-users-own-key")
    told = wait_until_ready(port, process, tmp_path)
    processes = family_of(process)
    assert len(processes) >= 3

    with httpx.Client(base_url=told["url"], timeout=120, trust_env=False) as client:
        closed = [client.get("/v1/models"), client.post("/v1/completions", json={}), client.get("/health")]
        assert [answer.status_code for answer in closed] == [401, 401, 200]
        client.headers["Authorization"] = "Bearer the-users-own-key"
        answers = []
        for request in requests:
            sampling = {"max_tokens": NEW_TOKENS, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
            answer = client.post("/v1/completions", json={"model": told["model"], **request, **sampling})
            answers.append(answer.json()["choices"][0]["token_ids"])
    process.terminate()

    assert process.wait(60) == 128 + signal.SIGTERM
    check_all_gone(processes, port)
    assert answers == expected(model, requests)


def test_ctrl_c_while_it_starts_ends_everything(tmp_path):
    port = free_port()
    process = start_server(tmp_path, port, model=str(saved_model(tmp_path / "model", served_model("qwen2"))))
    deadline = time.monotonic() + 60
    while len(family_of(process)) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(2)
    processes = family_of(process)
    assert len(processes) >= 2
    process.send_signal(signal.SIGINT)

    assert process.wait(60) == 130
    check_all_gone(processes, port)
    assert (tmp_path / "server.log").read_text().splitlines()[-1] == "stopped"


def test_a_killed_parent_takes_everything_along(tmp_path):
    port = free_port()
    process = start_server(tmp_path, port, "--enforce-eager", model=str(saved_model(tmp_path / "model", served_model("qwen2"))))
    deadline = time.monotonic() + 200
    while "EngineCore" not in (tmp_path / "server.log").read_text() and time.monotonic() < deadline:
        time.sleep(0.2)
    processes = family_of(process)
    process.kill()
    process.wait()

    _, alive = psutil.wait_procs(processes, timeout=60)

    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []
    # Nobody was left to remove it; the next server on the port takes its place.
    remove_folder(create_folder(port, None))


def test_a_server_that_cannot_start_says_so_in_its_words_and_one_of_ours(tmp_path):
    port = free_port()
    process = start_server(tmp_path, port, model=str(tmp_path / "no-such-model"))

    assert process.wait(200) == 2
    lines = (tmp_path / "server.log").read_text().splitlines()
    assert lines[-1].startswith("error: the vLLM server ended with exit code")
    assert any("no-such-model" in line for line in lines[:-1])
    wait_until_gone(private_folder(port))
