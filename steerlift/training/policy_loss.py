"""The GRPO loss of a micro-batch: by our chunked head, or by liger-kernel's fused loss."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steerlift.records.errors import InputError, MissingDependencyError
from steerlift.steering.models import Model, decoder_body
from steerlift.training.batch import MicroBatch
from steerlift.training.config import TrainConfig
from steerlift.training.grpo import importance_weights, token_losses
from steerlift.training.head import chunk_tokens, chunked_logprobs, chunked_loss, head_of


class TokenResults(NamedTuple):
    """A micro-batch's share of the step's loss, differentiable; the logprobs and entropies of its N tokens, shape (N,)."""

    loss: Tensor
    logprobs_N: Tensor
    entropies_N: Tensor


PolicyLoss = Callable[[Model, MicroBatch], TokenResults]
"""Takes the model on every call: under FSDP2 its weights are whole only within its forward."""


def our_loss(config: TrainConfig) -> PolicyLoss:
    """The loss on the tokens that count only, with the language-model head in chunks."""
    corrects = config.use_vllm and config.importance_cap > 0

    def loss(model: Model, batch: MicroBatch) -> TokenResults:
        def chunk_loss(logprobs_C: Tensor, chunk: slice) -> Tensor:
            old_C = None if batch.old_logprobs_N is None else batch.old_logprobs_N[chunk]
            importance_C = None
            if corrects and batch.sampled_logprobs_N is not None:
                here_C = logprobs_C if old_C is None else old_C
                importance_C = importance_weights(here_C, batch.sampled_logprobs_N[chunk], config.importance_cap)
            losses_C = token_losses(
                logprobs_C,
                old_C,
                batch.advantages_N[chunk],
                config.epsilon_low,
                config.epsilon_high,
                None if batch.reference_logprobs_N is None else batch.reference_logprobs_N[chunk],
                config.beta,
                importance_C,
            )
            return (losses_C * batch.weights_N[chunk]).sum()

        hidden_NH = batch.hidden(decoder_body(model))
        return TokenResults(*chunked_loss(hidden_NH, head_of(model), batch.targets_N, config.temperature, chunk_loss))

    return loss


@torch.no_grad()
def batch_logprobs(model: Model, batch: MicroBatch, temperature: float) -> Tensor:
    """Log probabilities of a micro-batch's tokens under a model, shape (N,), without a gradient."""
    return chunked_logprobs(batch.hidden(decoder_body(model)), head_of(model), batch.targets_N, temperature)


def liger_loss(config: TrainConfig) -> PolicyLoss:
    """The same loss by liger-kernel's LigerFusedLinearGRPOLoss. It gives no logprobs or entropies: they come back empty.

    Raises MissingDependencyError without liger-kernel and InputError for options that its loss does not know;
    `check_liger_head` asks about the model.
    """
    if config.beta or config.num_iterations > 1 or config.use_vllm:
        raise InputError("--use_liger knows no --beta, --num_iterations or --use_vllm; leave it out, our loss knows them")
    fused_type = import_liger()

    @cache
    def fused(vocabulary: int, device: str) -> Any:  # noqa: ANN401 - liger-kernel is untyped
        return fused_type(
            beta=0.0,
            compiled=device == "cuda",  # compiling costs half a minute on a CPU and gains nothing there
            use_ref_model=False,
            chunk_size=chunk_tokens(vocabulary, device),
            epsilon_low=config.epsilon_low,
            epsilon_high=config.epsilon_low if config.epsilon_high is None else config.epsilon_high,
            loss_type="dr_grpo",
            max_completion_length=1,
            temperature=config.temperature,
        )

    def loss(model: Model, batch: MicroBatch) -> TokenResults:
        head = head_of(model)
        # Each token goes in as a completion of length 1, with its weight in its advantage: the mean that liger then takes
        # over N completions is undone by N. So every loss_type is exact, and masked tokens never reach the head.
        advantages_N = batch.advantages_N * batch.weights_N * len(batch.targets_N)
        targets_N1 = batch.targets_N[:, None]
        hidden_N1H = batch.hidden(decoder_body(model))[:, None]
        total, _ = fused(len(head.weight_VH), hidden_N1H.device.type)(
            hidden_N1H, head.weight_VH, targets_N1, torch.ones_like(targets_N1), advantages_N, head.bias_V
        )
        return TokenResults(total, torch.empty(0), torch.empty(0))

    return loss


def check_liger_head(model: Model) -> None:
    """Raises InputError for a model whose head liger-kernel's loss does not know."""
    head = head_of(model)
    if head.softcap is not None or head.scale != 1.0:
        raise InputError("--use_liger knows no head with a soft cap or a scale; leave it out, our loss knows both")


def import_liger() -> Any:  # noqa: ANN401 - liger-kernel is untyped
    """liger-kernel's loss class. Raises MissingDependencyError where it is not installed."""
    try:
        from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss
    except ImportError as error:
        raise MissingDependencyError(f"--use_liger needs liger-kernel ({error}): pip install 'steerlift[liger]'") from error
    return LigerFusedLinearGRPOLoss
