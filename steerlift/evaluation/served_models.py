"""An evaluation's models on vLLM servers of `steerlift serve`: base and all steering weights as one stream of requests."""

import hashlib
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save

from steerlift.evaluation.config import EvaluateConfig
from steerlift.evaluation.samplers import MakeSampler
from steerlift.records.errors import InputError, MissingInputError
from steerlift.records.progress import say
from steerlift.sampling.hand_over import give_weights, save_weights, weight_version
from steerlift.sampling.remote import RemoteSampler
from steerlift.sampling.sampler import Sampler
from steerlift.sampling.server import Server
from steerlift.serving.find import find_folder, find_key
from steerlift.serving.private import WEIGHTS
from steerlift.serving.tokenizer_digest import tokenizer_digest
from steerlift.steering.models import (
    Tokenizer,
    architecture,
    load_config,
    load_end_token_ids,
    load_model,
    load_tokenizer,
)
from steerlift.steering.vectors import SteeringVectors

# What vLLM calls the weights that a server has started with.
_FIRST_WEIGHTS = "default"


class ServedModels:
    """Servers of the base model, all alike, and servers of the fine-tuned one.

    Without the latter the base's servers are lent the fine-tuned weights, and get their own back. Vectors are uploaded to
    each server under the digest of their content.
    """

    def __init__(self, config: EvaluateConfig) -> None:
        """Raises InputError where a server has another architecture or tokenizer, ServerError where one does not answer."""
        self.config = config
        self.tokenizer = load_tokenizer(config.base_model_name)
        self.base = [self._server(url, config.base_model_name) for url in _urls(config.servers)]
        self.finetuned = [self._server(url, config.finetuned_checkpoint) for url in _urls(config.finetuned_servers)]

    def sampler(self, name: str, vectors: SteeringVectors | None = None) -> MakeSampler:
        """What makes a sampler of the model `name`, steered by `vectors` at each task's weight."""
        lent = name != self.config.base_model_name and bool(self.finetuned)
        servers = self.finetuned if lent else self.base
        content = None if vectors is None else save({f"layer.{i}": v.contiguous() for i, v in vectors.layers.items()})
        steering = None if content is None else f"evaluate-{hashlib.sha256(content).hexdigest()[:32]}"

        def prepare(server: Server) -> None:
            server.key = find_key(server.url)  # one that has started anew has made another
            if not lent:
                self._lend(server, name)
            if content is not None and steering not in server.request("GET", "/steerlift/vectors").json()["vectors"]:
                server.request("PUT", f"/steerlift/vectors/{steering}", content=content)

        def make() -> tuple[Sampler, Tokenizer]:
            model = str(servers[0].info()["model"])
            say(f"sampling {name} on {', '.join(server.url for server in servers)}")
            end_ids = load_end_token_ids(name, self.tokenizer)
            return RemoteSampler(servers, model, self.tokenizer, end_ids, steering, prepare=prepare), self.tokenizer

        return make

    def release(self) -> None:
        """Gives back their own weights to servers that were lent others."""
        for server in self.base:
            self._lend(server, self.config.base_model_name)

    def _server(self, url: str, model: str) -> Server:
        try:
            server = Server(url, find_key(url))
        except MissingInputError as error:
            raise InputError(f"--engine vllm: {error}") from error
        info = server.info()
        here = {"architecture": architecture(load_config(model)), "tokenizer_digest": tokenizer_digest(self.tokenizer)}
        for name, value in here.items():
            if info[name] != value:
                raise InputError(f"{url} has {name} {info[name]}, {model} has {value}; start the server with that model")
        return server

    def _lend(self, server: Server, name: str) -> None:
        """Sees to it that a server of the base model has the weights of `name`, whatever an evaluation before has left."""
        version = weight_version(server)
        is_base = name == self.config.base_model_name
        if version == name or (is_base and version == _FIRST_WEIGHTS):
            return
        folder = find_folder(server.url)
        if folder is None:
            raise InputError(
                f"{server.url} is on another machine, so it cannot be lent the weights of {name};"
                " name servers of the fine-tuned model with --finetuned_servers"
            )
        say(f"giving {server.url} the weights of {name}")
        scratch = Path(tempfile.mkdtemp(prefix="steerlift-evaluate-", dir=folder.parent))
        try:
            file = scratch / "weights.safetensors"
            save_weights(load_model(name, torch.device("cpu"), torch.float32).state_dict(), file)
            give_weights(server, folder / WEIGHTS, file, name)
        finally:
            shutil.rmtree(scratch)


def _urls(text: str) -> list[str]:
    return [url.strip() for url in text.split(",") if url.strip()]
