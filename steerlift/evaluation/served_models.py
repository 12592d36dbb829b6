"""An evaluation's models on vLLM servers of `steerlift serve`: base and all steering weights as one stream of requests."""

import hashlib
import shutil
from contextlib import ExitStack, closing

import torch

from steerlift.evaluation.config import EvaluateConfig
from steerlift.evaluation.samplers import MakeSampler
from steerlift.records.errors import InputError, MissingInputError, ServerError, SteerliftError
from steerlift.records.progress import say
from steerlift.sampling.hand_over import give_weights, save_weights, scratch_folder, weight_version
from steerlift.sampling.remote import RemoteSampler
from steerlift.sampling.sampler import Sampler
from steerlift.sampling.server import Server, check_serves
from steerlift.serving.find import current_key, find_folder, find_key
from steerlift.serving.private import WEIGHTS
from steerlift.serving.tokenizer_digest import tokenizer_digest
from steerlift.steering.identity import identity, place
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
        if not _urls(config.servers):
            raise InputError("--engine vllm: --servers names no server; expected url,url ...")
        self.tokenizer = load_tokenizer(config.base_model_name)
        self._names: dict[str, str] = {}  # of the model at each server
        with ExitStack() as self._connections:
            self.base = [self._server(url, config.base_model_name) for url in _urls(config.servers)]
            tuned = config.finetuned_checkpoint
            self.finetuned = [] if tuned is None else [self._server(url, tuned) for url in _urls(config.finetuned_servers)]
            self._connections = self._connections.pop_all()  # all is well: they stay open

    def sampler(self, name: str, vectors: SteeringVectors | None = None) -> MakeSampler:
        """What makes a sampler of the model `name`, steered by `vectors` at each task's weight."""
        servers = self.finetuned if self.finetuned and name != self.config.base_model_name else self.base
        content = None if vectors is None else vectors.content()
        steering = None if content is None else f"evaluate-{hashlib.sha256(content).hexdigest()[:32]}"

        def prepare(server: Server) -> None:
            server.key = current_key(server.url)
            self._lend(server, name)
            if content is not None and steering not in server.info()["vectors"]:
                server.request("PUT", f"/steerlift/vectors/{steering}", content=content)

        def make() -> tuple[Sampler, Tokenizer]:
            say(f"sampling {name} on {', '.join(server.url for server in servers)}")
            model, end_ids = self._names[servers[0].url], load_end_token_ids(name, self.tokenizer)
            return RemoteSampler(servers, model, self.tokenizer, end_ids, steering, prepare=prepare), self.tokenizer

        return make

    def release(self) -> None:
        """Gives back their own weights to servers that were lent others, and ends the connections."""
        for server in self.base:
            try:
                self._lend(server, self.config.base_model_name)
            except SteerliftError as error:
                # No reason to lose the results: whoever evaluates there next looks after it.
                say(f"{server.url} does not have its own weights back: {error}")
        self._connections.close()

    def _server(self, url: str, model: str) -> Server:
        try:
            server = self._connections.enter_context(closing(Server(url, find_key(url))))
            info = server.info()
        except MissingInputError as error:
            raise InputError(f"--engine vllm: {error}") from error
        except ServerError as error:
            raise ServerError(f"--engine vllm: {error}; is it running?") from error
        here = {"architecture": architecture(load_config(model)), "tokenizer_digest": tokenizer_digest(self.tokenizer)}
        if self.config.dtype != "auto":
            here["dtype"] = self.config.dtype
        check_serves(url, info, here, f"{model} here", "start the server with that model and --dtype")
        self._names[server.url] = str(info["model"])
        return server

    def _lend(self, server: Server, name: str) -> None:
        """Sees to it that a server has the weights of `name`, whatever an evaluation or a training before has left."""
        if has_weights(server, name):
            return
        folder = find_folder(server.url)
        if folder is None:
            raise InputError(
                f"{server.url} is on another machine, so it cannot be lent the weights of {name};"
                " name servers of the fine-tuned model with --finetuned_servers"
            )
        say(f"giving {server.url} the weights of {name}")
        scratch = scratch_folder(folder)
        try:
            file = scratch / "weights.safetensors"
            dtype = getattr(torch, str(server.info()["dtype"]))
            save_weights(load_model(name, torch.device("cpu"), dtype).state_dict(), file)
            give_weights(server, folder / WEIGHTS, file, identity(name))
        finally:
            shutil.rmtree(scratch)


def has_weights(server: Server, name: str) -> bool:
    """Whether a server has the weights of the model `name` now."""
    version = weight_version(server)
    if version != _FIRST_WEIGHTS:
        return version == identity(name)
    # A server of another machine has what its user says that it has.
    return find_folder(server.url) is None or place(str(server.info()["model"])) == place(name)


def _urls(text: str) -> list[str]:
    return [url.strip() for url in text.split(",") if url.strip()]
