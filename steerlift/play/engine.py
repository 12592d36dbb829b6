"""Answers problems in one thread, one job at a time, and says every token as it comes. It knows nothing of the page.

A job is filled by the engine's thread and read by any other: its lists only grow.
"""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, TypeVar

from steerlift.records.errors import SteerliftError
from steerlift.records.types import Completion, GradedProblem, Problem
from steerlift.sampling.rollouts import Task, rollouts
from steerlift.sampling.sampler import OnDone, OnToken, Request, SamplingOptions, StreamingSampler
from steerlift.steering.models import Tokenizer

State = Literal["waiting", "running", "done", "stopped", "failed"]

JobT = TypeVar("JobT", bound="Job")

_HALF_A_CHARACTER = "\ufffd"


class StoppedError(Exception):
    """The user has stopped a job."""


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of an answer and the probability of its token under the model that sampled it, at the sampling temperature."""

    text: str
    probability: float


class Answer:
    """One answer as it comes, and its grade once it is whole."""

    def __init__(self, weight: float, tokenizer: Tokenizer) -> None:
        self.weight = weight
        self.tokens: list[Token] = []
        self.graded: GradedProblem | None = None
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._text = ""

    def add(self, token_id: int, logprob: float) -> None:
        """The next token. One that ends in the middle of a character shows with the one that completes it."""
        self._ids.append(token_id)
        text: str = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        if text.endswith(_HALF_A_CHARACTER):
            return
        piece, self._text = text[len(self._text) :], text
        if piece:
            self.tokens.append(Token(piece, math.exp(logprob)))


class Job:
    """Work that waits for its turn and can be stopped at any token."""

    def __init__(self) -> None:
        self.state: State = "waiting"
        self.error = ""
        self.future: Future[None] | None = None
        self._stopped = False

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self.state in ("done", "stopped", "failed")

    def stop(self) -> None:
        """Ends the job at its next token, at once if its turn has not come."""
        self._stopped = True
        if self.future is not None and self.future.cancel():
            self.state = "stopped"

    def go_on(self) -> None:
        """Raises StoppedError once the job is to end."""
        if self._stopped:
            raise StoppedError


class AnswerJob(Job):
    """One problem answered without and with steering, by the same random numbers."""

    def __init__(self, base: Answer, steered: Answer) -> None:
        super().__init__()
        self.base = base
        self.steered = steered

    def on_token(self, request: Request, token_id: int, logprob: float) -> None:
        """Gives a token to the answer that it belongs to: to both where the weight is 0."""
        self.go_on()
        for answer in (self.base, self.steered):
            if answer.weight == request.weight:
                answer.add(token_id, logprob)


class SweepJob(Job):
    """Problems answered several times under each weight; `points` are (weight, share right, share right without the format)."""

    def __init__(self, total: int) -> None:
        super().__init__()
        self.total = total
        self.finished = 0
        self.points: list[tuple[float, float, float]] = []

    def on_done(self, count: int) -> None:
        """Counts completions."""
        self.go_on()
        self.finished += count


class Engine:
    """One sampler and its queue."""

    def __init__(
        self, sampler: StreamingSampler, tokenizer: Tokenizer, options: SamplingOptions, few_shot: Sequence[Problem] = ()
    ) -> None:
        self.sampler = sampler
        self.tokenizer = tokenizer
        self.options = options
        self.few_shot = few_shot
        self._jobs: list[Job] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="steerlift-play")

    def answer(self, problem: Problem, weight: float, seed: int) -> AnswerJob:
        """Begins to answer `problem` at weight 0 and at `weight`. The seed of an evaluation gives its first completion."""
        job = AnswerJob(Answer(0.0, self.tokenizer), Answer(weight, self.tokenizer))
        # At weight 0 both are one answer.
        tasks = [Task(problem, 1, seed, each) for each in dict.fromkeys((0.0, weight))]

        def work() -> None:
            graded = self._rollouts(tasks, None, job.on_token)
            job.base.graded, job.steered.graded = graded[0], graded[-1]

        return self._begin(job, work)

    def sweep(self, problems: Sequence[Problem], weights: Sequence[float], count: int, seed: int) -> SweepJob:
        """Begins to answer each problem `count` times under each weight."""
        job = SweepJob(len(problems) * len(weights) * count)

        def go_on(request: Request, token_id: int, logprob: float) -> None:  # noqa: ARG001 - what a token brings
            job.go_on()

        def work() -> None:
            for weight in weights:
                graded = self._rollouts([Task(problem, count, seed, weight) for problem in problems], job.on_done, go_on)
                grades = [grade for each in graded for grade in each.grades]
                strict, lenient = sum(grade.correct for grade in grades), sum(grade.lenient_correct for grade in grades)
                job.points.append((weight, strict / len(grades), lenient / len(grades)))

        return self._begin(job, work)

    def close(self) -> None:
        """Stops every job and waits for the thread to end."""
        for job in self._jobs:
            job.stop()
        self._thread.shutdown()

    def _begin(self, job: JobT, work: Callable[[], None]) -> JobT:
        self._jobs = [each for each in self._jobs if not each.over] + [job]
        job.future = self._thread.submit(_run, job, work)
        return job

    def _rollouts(self, tasks: Sequence[Task], on_done: OnDone | None, on_token: OnToken) -> list[GradedProblem]:
        sampler = _Watched(self.sampler, on_token)
        return rollouts(sampler, self.tokenizer, tasks, self.options, on_done, self.few_shot)


@dataclass(frozen=True)
class _Watched:
    """A sampler whose tokens somebody hears of, for `rollouts`, which knows of completions only."""

    sampler: StreamingSampler
    on_token: OnToken

    def sample(
        self, requests: Sequence[Request], options: SamplingOptions, on_done: OnDone | None = None
    ) -> list[list[Completion]]:
        return self.sampler.sample(requests, options, on_done, self.on_token)


def _run(job: Job, work: Callable[[], None]) -> None:
    try:
        job.go_on()
        job.state = "running"
        work()
        job.state = "done"
    # A server's sampler raises both in groups.
    except* StoppedError:
        job.state = "stopped"
    except* SteerliftError as errors:
        job.state, job.error = "failed", _first_line(errors)
    finally:
        if not job.over:
            job.state, job.error = "failed", "this is a bug of steerlift; its traceback stands in the terminal"


def _first_line(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error)
