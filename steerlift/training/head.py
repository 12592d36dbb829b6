"""The language-model head and its backward in chunks: the logits of a long batch never exist at once.

At a vocabulary of 150,000 the logits are the memory of a GRPO step. Masked tokens are dropped before the head, and each
chunk's logits are turned into its loss and gradients and thrown away before the next chunk's are computed. That is exact
because every token's weight in the loss is known in advance (`grpo.token_weights`).

Shapes: N tokens, H hidden size, V vocabulary, C tokens of a chunk.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from steerlift.records.errors import InputError
from steerlift.steering.models import Model, text_config

# Bytes of one chunk's float32 logits; two such buffers exist at a time. A CPU gains no speed from more, a GPU does.
_CHUNK_BYTES = {"cpu": 16 * 2**20}
_CHUNK_BYTES_ELSEWHERE = 128 * 2**20


class ChunkLoss(Protocol):
    """The loss of some of the tokens."""

    def __call__(self, logprobs_C: Tensor, chunk: slice) -> Tensor:
        """The summed, weighted loss of a chunk's logprobs, shape (C,); `chunk` says which of the N tokens they are."""


@dataclass(frozen=True)
class Head:
    """A linear language-model head: logits = scale * (hidden @ weight.T + bias), then cap * tanh(logits / cap) with a cap."""

    weight_VH: Tensor
    bias_V: Tensor | None = None
    softcap: float | None = None
    scale: float = 1.0


def head_of(model: Model) -> Head:
    """The head of a transformers causal language model. Raises InputError where it is not linear."""
    linear = model.get_output_embeddings()
    if not isinstance(linear, torch.nn.Linear):
        raise InputError(f"{type(model).__name__} has a {type(linear).__name__} as its head; training needs a linear one")
    config = text_config(model)
    scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1.0)
    return Head(linear.weight, linear.bias, getattr(config, "final_logit_softcapping", None), float(scale))


def chunked_loss(
    hidden_NH: Tensor, head: Head, targets_N: Tensor, temperature: float, chunk_loss: ChunkLoss
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum of `chunk_loss` over the tokens, differentiable, and their logprobs and entropies (detached), shape (N,).

    Logprobs and entropies are those of softmax(logits / temperature), the policy that was sampled.
    """
    loss, logprobs_N, entropies_N = _ChunkedLoss.apply(  # type: ignore[no-untyped-call]
        hidden_NH, head.weight_VH, head.bias_V, head, targets_N, temperature, chunk_loss
    )
    return loss, logprobs_N, entropies_N


@torch.no_grad()
def chunked_logprobs(hidden_NH: Tensor, head: Head, targets_N: Tensor, temperature: float) -> Tensor:
    """Log probability of each target under softmax(logits / temperature), shape (N,), without a gradient."""
    weight_VH = head.weight_VH.to(hidden_NH.dtype)
    size = chunk_tokens(len(weight_VH), weight_VH.device.type)
    logprobs = []
    for hidden_CH, targets_C in zip(torch.split(hidden_NH, size), torch.split(targets_N, size), strict=True):
        scaled_CV = _logits(hidden_CH, weight_VH, head).div_(temperature)
        logprobs.append(scaled_CV.gather(1, targets_C[:, None]).squeeze(1) - scaled_CV.logsumexp(-1))
    return torch.cat(logprobs)


def chunked_kl(
    hidden_NH: Tensor,
    head: Head,
    temperature: float,
    teacher_NH: Tensor,
    teacher_head: Head,
    teacher_temperature: float,
    weights_N: Tensor,
) -> Tensor:
    """The weighted sum over tokens of KL(teacher || policy) in nats over the whole vocabulary, each at its temperature.

    Differentiable with respect to `hidden_NH` alone: it is for policies whose head stays as it is.
    """
    kl: Tensor = _ChunkedKl.apply(  # type: ignore[no-untyped-call]
        hidden_NH, head, temperature, teacher_NH, teacher_head, teacher_temperature, weights_N
    )
    return kl


def chunk_tokens(vocabulary: int, device: str = "cpu") -> int:
    """Tokens of a chunk: enough for efficient matrix products, few enough for little memory."""
    return max(64, _CHUNK_BYTES.get(device, _CHUNK_BYTES_ELSEWHERE) // (4 * vocabulary))


class _ChunkedLoss(torch.autograd.Function):
    """Computes the gradients in the forward pass, chunk by chunk, and hands them out in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's context takes any attribute
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        head: Head,
        targets_N: Tensor,
        temperature: float,
        chunk_loss: ChunkLoss,
    ) -> tuple[Tensor, Tensor, Tensor]:
        device = hidden_NH.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_NH.dtype
        gradients = _Gradients.like(hidden_NH, weight_VH, bias_V, ctx.needs_input_grad[:3])
        size = chunk_tokens(len(weight_VH), device)
        losses, logprobs, entropies = [], [], []
        with torch.autocast(device, enabled=False):
            weight = weight_VH.to(dtype)
            work_CV = torch.empty(min(size, len(hidden_NH)), len(weight), device=hidden_NH.device)
            for start in range(0, len(hidden_NH), size):
                chunk = slice(start, min(start + size, len(hidden_NH)))
                hidden_CH = hidden_NH[chunk].to(dtype)
                scaled_CV = _logits(hidden_CH, weight, head).div_(temperature)
                loss, logprobs_C, entropies_C, grad_CV = _loss_of_chunk(
                    scaled_CV, work_CV[: len(scaled_CV)], targets_N[chunk], partial(chunk_loss, chunk=chunk)
                )
                losses.append(loss)
                logprobs.append(logprobs_C)
                entropies.append(entropies_C)
                gradients.add(chunk, _through_head(grad_CV, scaled_CV, head, temperature), hidden_CH, weight)
        ctx.gradients = gradients
        logprobs_N, entropies_N = torch.cat(logprobs), torch.cat(entropies)
        ctx.mark_non_differentiable(logprobs_N, entropies_N)
        return torch.stack(losses).sum(), logprobs_N, entropies_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - see forward
        gradients: _Gradients = ctx.gradients
        # In place: a second copy of the head's gradient would be the peak of the whole step.
        wanted = (gradients.hidden_NH, gradients.weight_VH, gradients.bias_V)
        return (*(None if gradient is None else gradient.mul_(grad_loss) for gradient in wanted), None, None, None, None)


class _ChunkedKl(torch.autograd.Function):
    """The same way for a KL; the head itself gets no gradient."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's context takes any attribute
        hidden_NH: Tensor,
        head: Head,
        temperature: float,
        teacher_NH: Tensor,
        teacher_head: Head,
        teacher_temperature: float,
        weights_N: Tensor,
    ) -> Tensor:
        device = hidden_NH.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_NH.dtype
        gradient_NH = torch.empty_like(hidden_NH)
        losses = []
        with torch.autocast(device, enabled=False):
            weight, teacher_weight = head.weight_VH.to(dtype), teacher_head.weight_VH.to(dtype)
            size = chunk_tokens(len(weight), device)
            for start in range(0, len(hidden_NH), size):
                chunk = slice(start, start + size)
                scaled_CV = _logits(hidden_NH[chunk].to(dtype), weight, head).div_(temperature)
                logprobs_CV = scaled_CV.log_softmax(-1)
                teacher_CV = _logits(teacher_NH[chunk].to(dtype), teacher_weight, teacher_head)
                wanted_CV = teacher_CV.div_(teacher_temperature).log_softmax(-1)
                shares_CV = wanted_CV.exp()
                losses.append((shares_CV * (wanted_CV - logprobs_CV)).sum(-1) @ weights_N[chunk])
                # d KL / d scaled logit = softmax - the teacher's softmax
                grad_CV = logprobs_CV.exp_().sub_(shares_CV).mul_(weights_N[chunk, None])
                grad_CV = _through_head(grad_CV, scaled_CV, head, temperature)
                gradient_NH[chunk] = (grad_CV.to(dtype) @ weight).to(hidden_NH.dtype)
        ctx.gradient_NH = gradient_NH
        return torch.stack(losses).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - see forward
        return ctx.gradient_NH.mul_(grad_loss), None, None, None, None, None, None


@dataclass
class _Gradients:
    """The loss's gradients with respect to the inputs that want one, summed up chunk by chunk."""

    hidden_NH: Tensor | None
    weight_VH: Tensor | None
    bias_V: Tensor | None

    @classmethod
    def like(cls, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, wanted: tuple[bool, ...]) -> "_Gradients":
        inputs = (hidden_NH, weight_VH, bias_V)
        return cls(*(torch.zeros_like(t) if t is not None and want else None for t, want in zip(inputs, wanted, strict=True)))

    def add(self, chunk: slice, grad_CV: Tensor, hidden_CH: Tensor, weight_VH: Tensor) -> None:
        """Adds a chunk, given the gradient with respect to hidden @ weight.T + bias."""
        if self.bias_V is not None:
            self.bias_V += grad_CV.sum(0)
        grad_CV = grad_CV.to(weight_VH.dtype)
        if self.hidden_NH is not None:
            self.hidden_NH[chunk] = (grad_CV @ weight_VH).to(self.hidden_NH.dtype)
        if self.weight_VH is not None:
            self.weight_VH.addmm_(grad_CV.T.to(self.weight_VH.dtype), hidden_CH.to(self.weight_VH.dtype))


def _logits(hidden_CH: Tensor, weight_VH: Tensor, head: Head) -> Tensor:
    """Float32 logits of a chunk, shape (C, V), in a buffer of their own."""
    logits_CV = (hidden_CH @ weight_VH.T).float()
    if head.bias_V is not None:
        logits_CV += head.bias_V
    if head.scale != 1.0:
        logits_CV *= head.scale
    if head.softcap is not None:
        logits_CV.div_(head.softcap).tanh_().mul_(head.softcap)
    return logits_CV


def _through_head(grad_CV: Tensor, scaled_CV: Tensor, head: Head, temperature: float) -> Tensor:
    """In place: from the gradient with respect to the scaled logits to that with respect to hidden @ weight.T + bias."""
    if head.softcap is not None:  # d cap * tanh(x / cap) / dx = 1 - tanh^2
        grad_CV.mul_(1 - (scaled_CV * (temperature / head.softcap)) ** 2)
    return grad_CV.mul_(head.scale / temperature)


def _loss_of_chunk(
    scaled_CV: Tensor, work_CV: Tensor, targets_C: Tensor, chunk_loss: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss, logprobs (C,), entropies (C,), and in `work_CV` the loss's gradient with respect to the scaled logits."""
    # The softmax by hand: one exponential serves the logprobs, the entropy and the gradient.
    top_C = scaled_CV.amax(-1)
    masses_CV = torch.sub(scaled_CV, top_C[:, None], out=work_CV).exp_()
    total_C = masses_CV.sum(-1)
    log_total_C = top_C + total_C.log()
    chosen_C = scaled_CV.gather(1, targets_C[:, None]).squeeze(1)
    with torch.enable_grad():
        logprobs_C = (chosen_C - log_total_C).requires_grad_()
        loss = chunk_loss(logprobs_C)
    (slope_C,) = torch.autograd.grad(loss, logprobs_C)
    # Entropy = log total - mean scaled logit under the softmax; a product per row, so that no third buffer is needed.
    mean_C = torch.bmm(masses_CV[:, None], scaled_CV[:, :, None]).flatten() / total_C
    # d logprob / d scaled logit = onehot - softmax
    grad_CV = masses_CV.mul_(-(slope_C / total_C)[:, None])
    grad_CV.scatter_add_(1, targets_C[:, None], slope_C[:, None])
    return loss.detach(), logprobs_C.detach(), log_total_C - mean_C, grad_CV
