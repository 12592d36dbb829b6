"""One optimizer step of a model: micro-batches forward and backward, gradients clipped, AdamW. GRPO and warm-up share it."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from steerlift.records.errors import NotFiniteError
from steerlift.steering.models import Model
from steerlift.steering.precision import Precision
from steerlift.training.batch import MicroBatch
from steerlift.training.policy_loss import PolicyLoss, TokenResults
from steerlift.training.processes import Processes

T = TypeVar("T")

# Between a parameter's name and the name of its optimizer state; no parameter's name has it.
_SEPARATOR = "|"


@dataclass(frozen=True, slots=True)
class AdamOptions:
    """AdamW, with gradients scaled down to `max_grad_norm` before it."""

    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0


@dataclass(frozen=True, slots=True)
class Gradients:
    """What came out of the backward passes: the loss summed over all processes, the gradients' norm before it was clipped,
    and what each micro-batch of this process put out."""

    loss: float
    norm: float
    results: list[TokenResults]


class Policy(nn.Module):
    """The model behind one forward, so that what wraps it (DDP, FSDP2) sees every use of its weights, the head's too."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model
        # The layers that FSDP2 shards one by one.
        self._no_split_modules = list(getattr(model, "_no_split_modules", None) or [])

    def forward(self, work: Callable[..., T], *arguments: Any) -> T:  # noqa: ANN401 - whatever the work takes
        """Runs `work` on the model."""
        return work(self.model, *arguments)

    def tie_weights(self) -> None:
        """FSDP2 parts tied weights when it cuts them up, and asks for this afterwards."""
        self.model.tie_weights()


class Learner:
    """The model, its optimizer and the processes that share the work. Parameters that want no gradient stay as they are."""

    def __init__(self, model: Model, options: AdamOptions, processes: Processes, precision: Precision) -> None:
        self.model = model
        self.processes = processes
        self.precision = precision
        self._policy = Policy(model)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=options.learning_rate)
        self._wrapped, self._optimizer = processes.accelerator.prepare(self._policy, optimizer)
        self.restart(options)

    def restart(self, options: AdamOptions) -> None:
        """Forgets all momentum and goes on under other options."""
        self.options = options
        self._adam.state.clear()
        for group in self._adam.param_groups:
            group.update(lr=options.learning_rate, betas=options.betas, weight_decay=options.weight_decay)

    def backward(self, batches: Sequence[MicroBatch], loss: PolicyLoss) -> Gradients:
        """Adds up the gradients of all processes' micro-batches and clips them; every process brings equally many."""
        self.model.train()
        results = []
        total = torch.zeros((), dtype=torch.float64)
        for index, batch in enumerate(batches):
            with self._synchronised(last=index == len(batches) - 1):
                with self.precision.context(self.processes.device):
                    result = TokenResults(*self._wrapped(loss, batch))
                # Processes average their gradients; the loss is a sum over all of them.
                (result.loss * self.processes.count).backward()
            total += result.loss.detach().double().cpu()
            results.append(result)
        norm = self.processes.accelerator.clip_grad_norm_(self._trained(), self.options.max_grad_norm)
        total = self.processes.sum(total.to(self.processes.device, torch.float32))
        return Gradients(float(total), float(_whole(norm)), results)

    def step(self, rate: float = 1.0) -> float:
        """Moves the weights, at `rate` times the peak learning rate; returns the learning rate."""
        for group in self._adam.param_groups:
            group["lr"] = rate * self.options.learning_rate
        self._adam.step()
        self.forget()
        return rate * self.options.learning_rate

    def forget(self) -> None:
        """Drops the gradients."""
        self._adam.zero_grad(set_to_none=True)

    def run(self, work: Callable[[Model], T]) -> T:
        """Runs `work`, which needs no gradient, with whole weights on every process.

        Each process may call the model as often as it likes: sampling ends sooner on one than on another.
        """
        with self.precision.without_gradients(self.model, self.processes.device):
            if not self.processes.sharded:
                return work(self.model)
            shards = [module for module in self._policy.modules() if isinstance(module, FSDPModule)]
            for shard in shards:
                shard.unshard()
                shard.set_reshard_after_forward(False, recurse=False)
            try:
                # Through the outermost forward, which FSDP2 has to see first.
                result: T = self._wrapped(work)
            finally:
                for shard in shards:
                    shard.set_reshard_after_forward(True, recurse=False)
                    shard.reshard()
            return result

    def weights(self) -> dict[str, Tensor]:
        """The whole weights by the model's own names. Every process has to ask."""
        state = self._policy.state_dict(keep_vars=True)
        whole = {id(tensor): _whole(tensor.detach()) for tensor in state.values()}  # a tied weight stays one tensor
        return {name.removeprefix("model."): whole[id(tensor)] for name, tensor in state.items()}

    def optimizer_state(self) -> dict[str, Tensor]:
        """The optimizer's tensors, whole, by parameter name and kind. Every process has to ask."""
        return {
            f"{name}{_SEPARATOR}{kind}": _whole(value)
            for name, parameter in self._policy.named_parameters()
            for kind, value in self._adam.state.get(parameter, {}).items()
        }

    def load_optimizer_state(self, tensors: dict[str, Tensor]) -> None:
        """Puts back what `optimizer_state` gave, also on another number of processes."""
        parameters = dict(self._policy.named_parameters())
        for key, value in tensors.items():
            name, kind = key.rsplit(_SEPARATOR, 1)
            parameter = parameters[name]
            if value.shape == parameter.shape:  # the count of steps stays on the CPU, where AdamW wants it
                value = value.to(self.processes.device)
                if isinstance(parameter, DTensor):
                    value = distribute_tensor(value, parameter.device_mesh, parameter.placements)
            self._adam.state[parameter][kind] = value

    @property
    def _adam(self) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = self._optimizer.optimizer
        return optimizer

    def _trained(self) -> list[nn.Parameter]:
        return [parameter for group in self._adam.param_groups for parameter in group["params"]]

    def _synchronised(self, last: bool) -> AbstractContextManager[Any]:
        # DDP sends gradients once, with the last micro-batch; FSDP2 each time, so that no process holds them whole.
        waits = not last and not self.processes.sharded
        context: AbstractContextManager[Any] = self.processes.accelerator.no_sync(self._wrapped) if waits else nullcontext()
        return context


def check_finite(gradients: Gradients) -> None:
    """Raises NotFiniteError for a loss or a gradient that is not a finite number."""
    if not (math.isfinite(gradients.loss) and math.isfinite(gradients.norm)):
        raise NotFiniteError(f"loss {gradients.loss}, gradient norm {gradients.norm}, expected finite numbers")


def _whole(tensor: Tensor) -> Tensor:
    """A tensor that FSDP2 has cut up, put together; any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
