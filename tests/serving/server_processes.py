"""Starts real servers for tests, waits for them, and sees them end; and counts the test processes that share one."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock
from served import ENVIRONMENT

from steerlift.serving.private import private_folder, read_server

REPOSITORY = Path(__file__).parents[2]
START_SECONDS = 400.0
STOP_SECONDS = 60.0


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


def common_folder(tmp_path_factory: Any, worker_id: str, name: str) -> Path:
    """The same folder for all test processes of a run."""
    base = tmp_path_factory.getbasetemp()
    folder: Path = (base if worker_id == "master" else base.parent) / name
    folder.mkdir(exist_ok=True)
    return folder


@contextlib.contextmanager
def counted(folder: Path, change: int) -> Iterator[dict[str, Any]]:
    """What the test processes know of the server, and how many of them use it."""
    path = folder / "state.json"
    with FileLock(folder / "state.lock"):
        state = json.loads(path.read_text()) if path.exists() else {"users": 0}
        state["users"] += change
        try:
            yield state
        finally:
            path.write_text(json.dumps(state))
