"""Vectors in training on a vLLM server of the base model: a sync is an upload of a few kilobytes."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from steerlift.evaluation.served_models import has_weights
from steerlift.records.errors import InputError, SteerliftError
from steerlift.records.types import Problem
from steerlift.sampling.rollouts import SampledProblem, Task
from steerlift.sampling.sampler import OnDone, SamplingOptions
from steerlift.sampling.server import Patience, Server
from steerlift.steering.models import Tokenizer
from steerlift.steering.trainable import TrainableVectors
from steerlift.training.learner import Learner
from steerlift.training.served_policy import ServedPolicy


class ServedVectors(ServedPolicy):
    """Samples the base model there, steered by the vectors that the learner has here."""

    def __init__(
        self,
        learner: Learner,
        vectors: TrainableVectors,
        base: str,
        tokenizer: Tokenizer,
        port: int,
        few_shot: Sequence[Problem] = (),
        patience: Patience | None = None,
    ) -> None:
        """Waits for the server. Raises ServerError when none comes, InputError when it serves another model."""
        super().__init__(learner, tokenizer, port, few_shot, patience)
        self.vectors = vectors
        self.base = base

    def sample(self, tasks: Sequence[Task], options: SamplingOptions, on_done: OnDone) -> list[SampledProblem]:
        """The tasks' completions, in order. Raises ServerError when the server stays away too long."""
        return super().sample([replace(task, weight=1.0) for task in tasks], options, on_done)

    def close(self) -> None:
        """Takes the vectors back and ends the connection."""
        if self.learner.processes.main:
            with suppress(SteerliftError):  # the server may be gone, and they with it
                self.server.request("DELETE", f"/steerlift/vectors/{self._name(self._syncs)}")
        super().close()

    def _save(self) -> None:
        self._content = self.vectors.vectors().content()
        self.sampler.steering = self._name(self._syncs)

    def _give_weights(self, server: Server) -> None:
        """Has the server hold the vectors as they are now, unless it has them already."""
        self._check_serves(self._connected())  # it may have started anew
        if not has_weights(server, self.base):
            raise InputError(f"{server.url} has other weights than {self.base}; start it anew")
        known = server.info()["vectors"]
        if self._name(self._syncs) not in known:
            server.request("PUT", f"/steerlift/vectors/{self._name(self._syncs)}", content=self._content)
        if self.learner.processes.main and self._name(self._syncs - 1) in known:
            server.request("DELETE", f"/steerlift/vectors/{self._name(self._syncs - 1)}")

    def _name(self, sync: int) -> str:
        return f"{self._copy.parent.name}-{sync}"
