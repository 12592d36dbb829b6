"""A server that tests may give other weights: one for all test processes of a run, to one test at a time."""

import contextlib
import os
import random
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from server_processes import common_folder, counted, free_port, start_server, wait_until_gone, wait_until_ready
from small_pipeline import GOOD, TEXTS, UNTAGGED, WRONG, Silent, problem_file, saved, tokenizer, untrained

from steerlift.problems.prompt import encode_prompt
from steerlift.records.types import GradedProblem
from steerlift.sampling.hand_over import give_weights, save_weights, scratch_folder, weight_version
from steerlift.sampling.server import Server
from steerlift.serving.private import WEIGHTS, private_folder, read_key, read_server
from steerlift.steering.models import load_model
from steerlift.steering.vectors import SteeringVectors
from steerlift.training.supervised import SupervisedOptions, supervised

# Four heads of 32: vLLM's attention on a CPU knows none that are smaller.
HIDDEN = 128
FLAGS = ("--enforce-eager", "--max-model-len=512", "--max-num-seqs=32", "--max-num-batched-tokens=200")
_OWN_WEIGHTS = "the test's base"


@dataclass(frozen=True)
class LentServer:
    """Where it listens, and a folder with `base` (what it serves), `finetuned`, `random`, vectors and problems."""

    port: int
    models: Path
    client: Server

    @property
    def folder(self) -> Path:
        return private_folder(self.port)

    def give(self, name: str, version: str = "the test's own") -> None:
        """Has it load the model `name`."""
        scratch = scratch_folder(self.folder)
        file = scratch / "weights.safetensors"
        save_weights(local_model(str(self.models / name)).state_dict(), file)
        give_weights(self.client, self.folder / WEIGHTS, file, version)
        file.unlink()
        scratch.rmdir()


@cache
def local_model(name: str) -> Any:
    """The callers share it, so none of them may change it."""
    return load_model(name, torch.device("cpu"), torch.float32)


@contextlib.contextmanager
def shared_server(tmp_path_factory: Any, worker_id: str) -> Iterator[LentServer]:
    """For a fixture of the whole session: starts the server unless another test process has, ends it after the last."""
    folder = common_folder(tmp_path_factory, worker_id, "lent")
    with counted(folder, 1) as state:
        if "port" not in state:
            state["port"] = _start(folder)
    with contextlib.closing(Server(f"http://127.0.0.1:{state['port']}", read_key(private_folder(state["port"])))) as client:
        yield LentServer(state["port"], folder, client)
    with counted(folder, -1) as state:
        if state["users"] == 0:
            _stop(state.pop("port"))


@contextlib.contextmanager
def lent(server: LentServer) -> Iterator[LentServer]:
    """For a fixture of one test: nobody else has the server, and it has its own weights."""
    with FileLock(server.models / "lent.lock"):
        if weight_version(server.client) not in ("default", _OWN_WEIGHTS):
            server.give("base", _OWN_WEIGHTS)
        yield server


def untied() -> Any:
    """The small pipeline's model of the server's size, random, with a head of its own."""
    model = untrained(hidden_size=HIDDEN)
    model.config.tie_word_embeddings = False
    torch.manual_seed(1)
    return type(model)(model.config)


def reward_by_token(graded: GradedProblem) -> list[float]:
    """Differs between any two answers that do not begin alike: random models learn from it too."""
    return [completion.token_ids[0] / 100 for completion in graded.completions]


def save_models(folder: Path) -> None:
    """All that stands in a lent server's folder."""
    base, finetuned = untrained(hidden_size=HIDDEN), untrained(hidden_size=HIDDEN)
    _teach(base, 15, [GOOD, WRONG, UNTAGGED, WRONG])
    _teach(finetuned, 40, [GOOD])
    for name, model in {"base": base, "finetuned": finetuned, "random": untrained(hidden_size=HIDDEN, seed=7)}.items():
        saved(folder / name, model)
    generator = torch.Generator().manual_seed(1)
    layers = {layer: 3 * torch.randn(HIDDEN, generator=generator) for layer in range(base.config.num_hidden_layers)}
    SteeringVectors(layers).save(folder / "v.safetensors")
    problem_file(folder)
    problem_file(folder, solution="7")


def _teach(model: Any, steps: int, answers: list[str]) -> None:
    rng = random.Random(0)
    prompts = [encode_prompt(tokenizer(), text) for text in TEXTS]
    ids = [[*tokenizer().encode(text, add_special_tokens=False), tokenizer().eos_token_id] for text in answers]
    options = SupervisedOptions(steps, 3e-3, warmup_steps=5)
    supervised(model, lambda _: [(rng.choice(prompts), rng.choice(ids)) for _ in range(16)], options, Silent())


def _start(folder: Path) -> int:
    save_models(folder)
    port = free_port()
    process = start_server(folder, port, *FLAGS, model=str(folder / "base"))
    wait_until_ready(port, process, folder)
    _started.append(process)
    return port


def _stop(port: int) -> None:
    told = read_server(private_folder(port))
    assert told is not None
    os.kill(told["pid"], signal.SIGINT)
    wait_until_gone(private_folder(port))


# Kept, for a process that nobody holds any more would warn that it is still running.
_started: list[Any] = []
