"""The policy on a vLLM server of `steerlift serve` on this machine, which takes over the weights as they change.

They go there as one safetensors file in memory. Each state of the weights has a version, which the server keeps beside them:
one that was away may have started anew with the base weights, so before it is asked anything it is given the right ones.
"""

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from steerlift.records.errors import InputError, ServerError
from steerlift.records.progress import progress, say
from steerlift.records.types import Problem
from steerlift.sampling.hand_over import give_weights, save_weights, scratch_folder, weight_version
from steerlift.sampling.remote import RemoteSampler
from steerlift.sampling.rollouts import SampledProblem, Task, sample_tasks
from steerlift.sampling.sampler import OnDone, SamplingOptions
from steerlift.sampling.server import Patience, Server, check_serves
from steerlift.serving.find import current_key
from steerlift.serving.private import WEIGHTS, private_folder
from steerlift.serving.tokenizer_digest import tokenizer_digest
from steerlift.steering.models import Tokenizer, architecture, end_token_ids, text_config
from steerlift.training.learner import Learner
from steerlift.training.lora import merged


class ServedPolicy:
    """Samples there what the learner has here. `patience` is how long the server may be away."""

    def __init__(
        self,
        learner: Learner,
        tokenizer: Tokenizer,
        port: int,
        few_shot: Sequence[Problem] = (),
        patience: Patience | None = None,
    ) -> None:
        """Waits for the server. Raises ServerError when none comes, InputError when it serves another model."""
        self.learner = learner
        self.tokenizer = tokenizer
        self.few_shot = few_shot
        self.patience = patience or Patience()
        self.folder = private_folder(port)
        self.server = Server(f"http://127.0.0.1:{port}", "")
        try:
            name = self._check_serves(self._wait())
        except (ServerError, InputError):
            self.server.close()
            raise
        end_ids = end_token_ids(learner.model, tokenizer)
        self.sampler = RemoteSampler([self.server], name, tokenizer, end_ids, None, self.patience, self._give_weights)
        self._syncs = 0
        # One copy for all processes, to give to a server that has started anew; beside its folder, so that a link is enough.
        made = str(scratch_folder(self.folder)) if learner.processes.main else ""
        self._copy = Path(next(filter(None, learner.processes.gather([made])))) / "policy.safetensors"

    def sample(self, tasks: Sequence[Task], options: SamplingOptions, on_done: OnDone) -> list[SampledProblem]:
        """The tasks' completions, in order. Raises ServerError when the server stays away too long."""
        return sample_tasks(self.sampler, self.tokenizer, tasks, options, on_done, self.few_shot)

    def sync(self) -> None:
        """Gives the learner's weights to the server; every process calls it whenever they have moved.

        A server that is away gets them before it is next asked for samples: there training waits for it, or stops.
        """
        self._syncs += 1
        self._save()
        if self.learner.processes.main:
            try:
                self._give_weights(self.server)
            except (ServerError, InputError) as error:
                say(f"{error}; it gets the new weights when it is back")
        self.learner.processes.wait()

    def _save(self) -> None:
        """Keeps what the server is to have."""
        model, weights = self.learner.model, self.learner.weights()
        if self.learner.processes.main:
            save_weights(merged(model, weights) if hasattr(model, "peft_config") else weights, self._copy)

    def close(self) -> None:
        """Removes the copy of the weights and ends the connection."""
        self.server.close()
        if self.learner.processes.main:
            shutil.rmtree(self._copy.parent, ignore_errors=True)

    def _wait(self) -> dict[str, object]:
        """What the server says of itself, once it answers."""
        end = time.monotonic() + self.patience.server
        with progress(f"waiting for the vLLM server at {self.server.url}", int(self.patience.server)) as bar:
            said = False
            while True:
                try:
                    return self._connected()
                except ServerError as error:
                    left = end - time.monotonic()
                    if left <= 0:
                        raise ServerError(f"--use_vllm: {error}; waited {self.patience.server:g} s for it") from error
                    if not said:
                        say(f"{error}; waiting for it")
                        said = True
                time.sleep(min(1.0, left))
                bar.advance(1)

    def _connected(self) -> dict[str, object]:
        """What the server says of itself."""
        self.server.key = current_key(self.server.url)
        return self.server.info()

    def _check_serves(self, info: dict[str, object]) -> str:
        """The name of the model there. Raises InputError where it is not what is trained here."""
        precision = self.learner.precision
        here = {
            "architecture": architecture(text_config(self.learner.model)),
            "tokenizer_digest": tokenizer_digest(self.tokenizer),
            "dtype": str(precision.autocast or precision.weights).removeprefix("torch."),
            "weight_transfer": "file",
        }
        advice = "start the server with the model that is trained and the same --dtype"
        check_serves(f"--use_vllm: {self.server.url}", info, here, "training", advice)
        return str(info["model"])

    def _give_weights(self, server: Server) -> None:
        """Has the server load the copy, unless it has these weights already."""
        self._check_serves(self._connected())  # it may have started anew
        version = f"{self._copy.parent.name}-{self._syncs}"
        if self._syncs and weight_version(server) != version:
            give_weights(server, self.folder / WEIGHTS, self._copy, version)
