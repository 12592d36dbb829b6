"""Completions kept in a file as they come: a killed run goes on, and what a model has answered before it is not asked again."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar

from steerlift.problems.prompt import worked_example
from steerlift.records.errors import InputError, MissingInputError
from steerlift.records.runs import Journal
from steerlift.records.types import Problem
from steerlift.sampling.rollouts import SampledProblem, Task, sample_tasks
from steerlift.sampling.sampler import OnDone, Sampler, SamplingOptions
from steerlift.steering.identity import digest, identity
from steerlift.steering.models import Tokenizer

# Completions between two writes: enough to fill a batch, and what takes so many seconds, as a kill loses them.
_LEAST_PER_WRITE, _MOST_PER_WRITE = 128, 2048
_SECONDS_PER_WRITE = 120

T = TypeVar("T")


def sampling_settings(
    finetuned_model: str, options: SamplingOptions, completions: int, few_shot: Sequence[Problem], seed: int, precision: str
) -> dict[str, Any]:
    """What the completions of a problem depend on, beside its text; `completions` is how many each problem has."""
    return {
        "finetuned_model": identity(finetuned_model),
        "completions": completions,
        "few_shot": digest(worked_example(example) for example in few_shot),
        "max_completion_length": options.max_completion_length,
        "temperature": options.temperature,
        "seed": seed,
        "dtype": precision,
    }


def in_parts(items: Sequence[T], completions: int) -> Iterator[Sequence[T]]:
    """The items a part at a time, to be written when the next part is asked for; each item takes so many completions.

    A part is as large as two minutes allow, by how long the part before it took.
    """
    size, done = _LEAST_PER_WRITE, 0
    while done < len(items):
        part = items[done : done + max(1, size // completions)]
        started = monotonic()
        yield part
        done += len(part)
        in_time = int(len(part) * completions * _SECONDS_PER_WRITE / max(monotonic() - started, 1e-3))
        size = min(max(in_time, _LEAST_PER_WRITE), _MOST_PER_WRITE)


@dataclass(frozen=True)
class KeptCompletions:
    """Sampled problems by their text, in memory and in a file: a line with what they depend on, then a line for each."""

    journal: Journal
    done: dict[str, SampledProblem]

    @classmethod
    def open(cls, path: Path, settings: Mapping[str, Any]) -> "KeptCompletions":
        """Goes on with the file at `path` where it has the same settings; replaces it where it has others."""
        journal = Journal(path)
        header, *rows = journal.read() or [{}]
        if header.get("settings") == settings:
            return cls(journal, _by_text(rows))
        path.unlink(missing_ok=True)
        journal.append([{"settings": settings}])
        return cls(journal, {})

    def take_over(self, sampled: Mapping[str, SampledProblem], wanted: Sequence[Problem]) -> int:
        """Keeps those of the wanted problems that are not here yet. Returns how many."""
        texts = [problem.problem for problem in wanted]
        new = [sampled[text] for text in texts if text in sampled and text not in self.done]
        self._keep(new)
        return len(new)

    def sample(
        self,
        sampler: Sampler,
        tokenizer: Tokenizer,
        tasks: Sequence[Task],
        options: SamplingOptions,
        on_done: OnDone,
        few_shot: Sequence[Problem] = (),
    ) -> list[SampledProblem]:
        """Every task's problem with its completions, in order; those that are kept are not sampled again."""
        todo = [task for task in tasks if task.problem.problem not in self.done]
        on_done(sum(task.count for task in tasks) - sum(task.count for task in todo))
        for part in in_parts(todo, max((task.count for task in todo), default=1)):
            self._keep(sample_tasks(sampler, tokenizer, part, options, on_done, few_shot))
        return [self.done[task.problem.problem] for task in tasks]

    def _keep(self, sampled: Sequence[SampledProblem]) -> None:
        self.journal.append(s.to_row() for s in sampled)
        self.done.update({s.problem.problem: s for s in sampled})


def earlier_completions(path: Path, settings: Mapping[str, Any], option: str) -> dict[str, SampledProblem]:
    """What another file holds, by the problem's text.

    Raises MissingInputError where there is no file and InputError where it depends on something else, both after `option`;
    only the problems may be others.
    """
    if not path.exists():
        raise MissingInputError(f"{option}: no {path}, where its completions would be")
    header, *rows = Journal(path).read() or [{}]
    theirs = header.get("settings", {})
    different = [name for name, value in settings.items() if name != "problems" and theirs.get(name) != value]
    if different:
        raise InputError(f"{option}: its completions have other settings ({', '.join(different)}); leave it out")
    return _by_text(rows)


def _by_text(rows: Sequence[dict[str, Any]]) -> dict[str, SampledProblem]:
    return {row["problem"]["problem"]: SampledProblem.from_row(row) for row in rows}
