"""The GRPO loss of a micro-batch: by our chunked head, or by liger-kernel's fused loss."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from steerlift.records.errors import InputError, MissingDependencyError
from steerlift.steering.models import Model, decoder_body
from steerlift.training.batch import MicroBatch
from steerlift.training.config import TrainConfig
from steerlift.training.grpo import token_losses
from steerlift.training.head import chunk_tokens, chunked_logprobs, chunked_loss, head_of

PolicyLoss = Callable[[MicroBatch], tuple[Tensor, Tensor]]
"""Takes a micro-batch; returns its share of the step's loss, differentiable, and the entropies of its tokens, shape (N,)."""


def our_loss(config: TrainConfig, model: Model, reference: Model | None) -> PolicyLoss:
    """The loss on the tokens that count only, with the language-model head in chunks."""
    body, head = decoder_body(model), head_of(model)

    def loss(batch: MicroBatch) -> tuple[Tensor, Tensor]:
        reference_N = _reference_logprobs(reference, batch, config.temperature) if reference is not None else None

        def chunk_loss(logprobs_C: Tensor, chunk: slice) -> Tensor:
            losses_C = token_losses(
                logprobs_C,
                None,
                batch.advantages_N[chunk],
                config.epsilon_low,
                config.epsilon_high,
                None if reference_N is None else reference_N[chunk],
                config.beta,
            )
            return (losses_C * batch.weights_N[chunk]).sum()

        total, _, entropies_N = chunked_loss(batch.hidden(body), head, batch.targets_N, config.temperature, chunk_loss)
        return total, entropies_N

    return loss


@torch.no_grad()
def _reference_logprobs(reference: Model, batch: MicroBatch, temperature: float) -> Tensor:
    return chunked_logprobs(batch.hidden(decoder_body(reference)), head_of(reference), batch.targets_N, temperature)


def liger_loss(config: TrainConfig, model: Model, reference: Model | None) -> PolicyLoss:
    """The same loss by liger-kernel's LigerFusedLinearGRPOLoss. It gives no entropies: they come back empty.

    Raises MissingDependencyError without liger-kernel and InputError for what its loss does not know.
    """
    body, head = decoder_body(model), head_of(model)
    if reference is not None or head.softcap is not None or head.scale != 1.0:
        raise InputError(
            "--use_liger knows no --beta and no head with a soft cap or a scale; leave it out, our loss knows both"
        )
    fused = import_liger()(
        beta=0.0,
        compiled=model.device.type == "cuda",  # compiling costs half a minute on a CPU and gains nothing there
        use_ref_model=False,
        chunk_size=chunk_tokens(len(head.weight_VH)),
        epsilon_low=config.epsilon_low,
        epsilon_high=config.epsilon_low if config.epsilon_high is None else config.epsilon_high,
        loss_type="dr_grpo",
        max_completion_length=1,
        temperature=config.temperature,
    )

    def loss(batch: MicroBatch) -> tuple[Tensor, Tensor]:
        # Each token goes in as a completion of length 1, with its weight in its advantage: the mean that liger then takes
        # over N completions is undone by N. So every loss_type is exact, and masked tokens never reach the head.
        count = len(batch.targets_N)
        advantages_N = batch.advantages_N * batch.weights_N * count
        targets_N1 = batch.targets_N[:, None]
        total, _ = fused(
            batch.hidden(body)[:, None], head.weight_VH, targets_N1, torch.ones_like(targets_N1), advantages_N, head.bias_V
        )
        return total, torch.empty(0)

    return loss


def import_liger() -> Any:  # noqa: ANN401 - liger-kernel is untyped
    """liger-kernel's loss class. Raises MissingDependencyError where it is not installed."""
    try:
        from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss
    except ImportError as error:
        raise MissingDependencyError(f"--use_liger needs liger-kernel ({error}): pip install 'steerlift[liger]'") from error
    return LigerFusedLinearGRPOLoss
