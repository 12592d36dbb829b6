"""One `steerlift serve`, started by the first test that needs it and shared by all test processes of a run."""

import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from lent_server import LentServer, lent, shared_server
from served import saved_model, served_model, two_vectors
from server_processes import common_folder, counted, free_port, start_server, wait_until_gone, wait_until_ready

from steerlift.serving.private import private_folder, read_key

# A shell that starts the tests in the background has them ignore Ctrl-C, and so would the servers, which are ended by it.
signal.signal(signal.SIGINT, signal.default_int_handler)

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


@pytest.fixture(scope="session")
def server(tmp_path_factory, worker_id) -> Iterator[RunningServer]:
    folder = common_folder(tmp_path_factory, worker_id, "server")
    with counted(folder, 1) as state:
        if "port" not in state:
            state.update(_start(folder))
    yield RunningServer(state["port"], state["pid"], state["model"])
    with counted(folder, -1) as state:
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


@pytest.fixture(scope="session")
def shared(tmp_path_factory, worker_id) -> Iterator[LentServer]:
    with shared_server(tmp_path_factory, worker_id) as server:
        yield server


@pytest.fixture
def served(shared) -> Iterator[LentServer]:
    with lent(shared) as server:
        yield server
