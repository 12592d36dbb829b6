"""A real `steerlift serve` for a benchmark, in an environment that has vLLM: started, waited for and ended."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from bench.measure import ROOT
from steerlift.sampling.server import Server
from steerlift.serving.find import find_key
from steerlift.serving.private import private_folder, read_server

if TYPE_CHECKING:
    from bench.serving_models import Served

VECTORS = "bench"
"""What the server calls a model's vectors."""
MODES = {"compiled": (), "eager": ("--enforce-eager",)}
"""How vLLM runs the model; compiled is what `steerlift serve` does unless it is told otherwise."""

_VERSION = "from steerlift.serving.vllm_private import vllm_version; print(vllm_version() or '')"
_START_SECONDS, _STOP_SECONDS = 600.0, 60.0


@dataclass(frozen=True)
class Running:
    """A server that is ready: its client, the name of its model, its private folder, and how long it took to start."""

    server: Server
    model: str
    folder: Path
    seconds: float


def vllm_version(python: Path) -> str:
    """The version of vLLM that an interpreter has; empty where it has none or there is no such interpreter."""
    if not os.access(python, os.X_OK):
        return ""
    done = subprocess.run([python, "-c", _VERSION], capture_output=True, text=True, cwd=ROOT, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


@contextmanager
def running(python: Path, served: "Served", mode: str) -> Iterator[Running]:
    """Serves a model inside the block, in float32 and with as many threads as torch has here."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    vectors = ("--vectors", f"{VECTORS}={served.vectors_file}")
    command = [
        str(python),
        "-m",
        "steerlift",
        "serve",
        "--model",
        str(served.folder),
        "--port",
        str(port),
        "--dtype",
        "float32",
    ]
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")}
    environment["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    log = served.folder.with_name(f"{served.folder.name} {mode}.log")
    start = time.monotonic()
    with log.open("wb") as output:
        # In a session of its own: Ctrl-C reaches us, and we end it.
        process = subprocess.Popen(
            [*command, *vectors, *MODES[mode]], cwd=ROOT, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        told = _wait(process, private_folder(port), log)
        url = f"http://127.0.0.1:{port}"
        with closing(Server(url, find_key(url))) as server:
            yield Running(server, str(told["model"]), private_folder(port), time.monotonic() - start)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(_STOP_SECONDS)


def _wait(process: subprocess.Popen[bytes], folder: Path, log: Path) -> dict[str, object]:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        told = read_server(folder)
        if told is not None:
            return told
        time.sleep(0.5)
    raise RuntimeError(f"the server did not start:\n{log.read_text(errors='replace')[-5000:]}")
