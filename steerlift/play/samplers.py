"""Where the answers are sampled: here, or on a vLLM server that is given the vectors."""

import hashlib

from steerlift.play.config import PlayConfig
from steerlift.play.streamed import NoPatience, StreamedSampler
from steerlift.records.errors import InputError, MissingInputError, ServerError
from steerlift.records.progress import say
from steerlift.sampling.local import LocalSampler
from steerlift.sampling.sampler import StreamingSampler
from steerlift.sampling.server import Server, check_serves
from steerlift.serving.find import current_key, find_key
from steerlift.serving.tokenizer_digest import tokenizer_digest
from steerlift.steering.models import (
    Tokenizer,
    architecture,
    choose_device,
    choose_dtype,
    load_config,
    load_end_token_ids,
    load_model,
    load_tokenizer,
)
from steerlift.steering.vectors import SteeringVectors


def make_sampler(config: PlayConfig, vectors: SteeringVectors) -> tuple[StreamingSampler, Tokenizer]:
    """The sampler of the base model, steered by `vectors`, and the model's tokenizer."""
    return _served(config, vectors) if config.engine == "vllm" else _local(config, vectors)


def _local(config: PlayConfig, vectors: SteeringVectors) -> tuple[StreamingSampler, Tokenizer]:
    device = choose_device(config.device)
    dtype = choose_dtype(config.dtype, device)
    say(f"loading {config.base_model_name} ({str(dtype).removeprefix('torch.')}, {device})")
    tokenizer = load_tokenizer(config.base_model_name)
    return LocalSampler(load_model(config.base_model_name, device, dtype), tokenizer, vectors), tokenizer


def _served(config: PlayConfig, vectors: SteeringVectors) -> tuple[StreamingSampler, Tokenizer]:
    """Raises InputError where the server has another architecture or tokenizer, ServerError where it does not answer."""
    tokenizer = load_tokenizer(config.base_model_name)
    try:
        server = Server(config.server, find_key(config.server))
        info = server.info()
    except MissingInputError as error:
        raise InputError(f"--engine vllm: {error}") from error
    except ServerError as error:
        raise ServerError(f"--engine vllm: {error}; is it running?") from error
    here = {
        "architecture": architecture(load_config(config.base_model_name)),
        "tokenizer_digest": tokenizer_digest(tokenizer),
    }
    check_serves(config.server, info, here, f"{config.base_model_name} here", "start the server with that model")
    content = vectors.content()
    steering = f"play-{hashlib.sha256(content).hexdigest()[:32]}"

    def prepare(server: Server) -> None:
        # It may have started anew since, with another key and without the vectors.
        server.key = current_key(server.url)
        if steering not in server.info()["vectors"]:
            server.request("PUT", f"/steerlift/vectors/{steering}", content=content)

    end_ids = load_end_token_ids(config.base_model_name, tokenizer)
    sampler = StreamedSampler([server], str(info["model"]), tokenizer, end_ids, steering, NoPatience(), prepare)
    return sampler, tokenizer
