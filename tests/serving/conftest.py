"""One `steerlift serve`, started by the first test that needs it and shared by all test processes of a run."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from served import ENVIRONMENT, saved_model, served_model, two_vectors

from steerlift.serving.private import private_folder, read_key, read_server

REPOSITORY = Path(__file__).parents[2]
START_SECONDS = 400.0
STOP_SECONDS = 60.0
LAST_TEST_SECONDS = 600.0
ROWS = 24


# Kept, for a process that nobody holds any more would warn that it is still running.
_started: list[subprocess.Popen[bytes]] = []


@dataclass(frozen=True)
class RunningServer:
    """Where it listens, what it keeps, and a client that has the key."""

    port: int
    pid: int
    model: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def folder(self) -> Path:
        return private_folder(self.port)

    def client(self, key: bool = True) -> Any:
        import httpx  # comes with vLLM

        headers = {"Authorization": f"Bearer {read_key(self.folder)}"} if key else {}
        return httpx.Client(
            base_url=self.url,
            headers=headers,
            timeout=120,
            # The server ends a connection that was idle for 5 s, perhaps just as the next request goes out.
            limits=httpx.Limits(max_keepalive_connections=0),
            trust_env=False,  # no proxy of the machine's environment may stand between
        )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_server(folder: Path, port: int, *flags: str, model: str, key: str | None = None) -> subprocess.Popen[bytes]:
    """`python vllm_server.py` in a session of its own; its output goes to FOLDER/server.log."""
    command = [sys.executable, str(REPOSITORY / "vllm_server.py"), "--model", model, "--port", str(port), *flags]
    own = {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")}
    own |= {} if key is None else {"VLLM_API_KEY": key}
    with (folder / "server.log").open("wb") as log:
        environment = {**own, **ENVIRONMENT, "PYTHONUNBUFFERED": "1"}
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)


def wait_until_ready(port: int, process: subprocess.Popen[bytes], folder: Path) -> dict[str, Any]:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError):
            server = read_server(private_folder(port))
            if server is not None:
                return server
        time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    raise AssertionError(f"the server did not start: {(folder / 'server.log').read_text()[-5000:]}")


def wait_until_gone(folder: Path) -> None:
    """The server removes its private folder last of all."""
    deadline = time.monotonic() + STOP_SECONDS
    while folder.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not folder.exists()


@pytest.fixture(scope="session")
def server(tmp_path_factory, worker_id) -> Iterator[RunningServer]:
    folder = tmp_path_factory.getbasetemp() if worker_id == "master" else tmp_path_factory.getbasetemp().parent
    folder = folder / "server"
    folder.mkdir(exist_ok=True)
    with _counted(folder, 1) as state:
        if "port" not in state:
            state.update(_start(folder))
    yield RunningServer(state["port"], state["pid"], state["model"])
    with _counted(folder, -1) as state:
        if state["users"] == 0:
            os.kill(state.pop("pid"), signal.SIGINT)
            wait_until_gone(private_folder(state.pop("port")))
    # Outside of the lock: the last to use it may be another test process than the one that has started it.
    for process in _started:
        try:
            process.wait(LAST_TEST_SECONDS)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            raise


@contextlib.contextmanager
def _counted(folder: Path, change: int) -> Iterator[dict[str, Any]]:
    """What the test processes know of the server, and how many of them use it."""
    path = folder / "state.json"
    with FileLock(folder / "lock"):
        state = json.loads(path.read_text()) if path.exists() else {"users": 0}
        state["users"] += change
        try:
            yield state
        finally:
            path.write_text(json.dumps(state))


def _start(folder: Path) -> dict[str, Any]:
    model = saved_model(folder / "model", served_model("qwen2"))
    vectors = []
    for name, value in two_vectors().items():
        vectors += ["--vectors", f"{name}={value.save(folder / f'{name}.safetensors')}"]
    port = free_port()
    flags = ["--enforce-eager", "--max-model-len=512", f"--max-num-seqs={ROWS}", "--max-num-batched-tokens=100", *vectors]
    process = start_server(folder, port, *flags, model=str(model))
    wait_until_ready(port, process, folder)
    _started.append(process)
    return {"port": port, "pid": process.pid, "model": str(model)}
