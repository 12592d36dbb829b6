"""Runs arms (base, fine-tuned, base with a vector at a weight) on problems, keeping every completion as it comes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steerlift.records.errors import InputError
from steerlift.records.progress import progress
from steerlift.records.runs import Journal, check_writable
from steerlift.records.types import GradedProblem, Problem
from steerlift.sampling.kept import in_parts
from steerlift.sampling.rollouts import Task, rollouts
from steerlift.sampling.sampler import Sampler, SamplingOptions
from steerlift.steering.models import Tokenizer


@dataclass(frozen=True, slots=True)
class Arm:
    """One evaluated configuration: `name` in files and tables, and the steering weight (0 for an unsteered model)."""

    name: str
    weight: float = 0.0


@dataclass
class Gradebook:
    """What has been answered so far, in memory and in a journal: (split, arm, problem index) -> graded problem."""

    journal: Journal
    done: dict[tuple[str, str, int], GradedProblem] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, settings: dict[str, Any], overwrite: bool) -> "Gradebook":
        """Continues the journal at `path` if it was written under the same settings.

        Raises InputError, naming what differs, if it was not and `overwrite` is off.
        """
        journal = Journal(path)
        rows = journal.read()
        if rows and rows[0].get("settings") == settings and not overwrite:
            try:
                done = {(r["split"], r["arm"], r["index"]): GradedProblem.from_row(r) for r in rows[1:]}
            except (KeyError, TypeError) as error:
                raise InputError(f"{path} holds a row that is no completion of ours ({error!r}); pass --overwrite") from error
            return cls(journal, done)
        if rows and not overwrite:
            before = rows[0].get("settings") or {}
            changed = sorted(name for name in {*before, *settings} if before.get(name) != settings.get(name))
            raise InputError(
                f"{path} holds completions of a run with other settings ({', '.join(changed)}); "
                "name another --output_path or pass --overwrite"
            )
        check_writable(path)
        if path.is_file():
            path.unlink()
        journal.append([{"settings": settings}])
        return cls(journal)

    def record(self, split: str, graded: Sequence[tuple[str, int, GradedProblem]]) -> None:
        """Keeps graded problems, each with its arm and index."""
        self.journal.append({"split": split, "arm": arm, "index": index, **g.to_row()} for arm, index, g in graded)
        self.done.update({(split, arm, index): g for arm, index, g in graded})

    def take_over(self, answered: Sequence[tuple[str, str, int, GradedProblem]]) -> int:
        """Keeps those of (split, arm, index, graded problem) that are not here yet. Returns how many."""
        new = {(split, arm, index): graded for split, arm, index, graded in answered if (split, arm, index) not in self.done}
        for split in sorted({split for split, _, _ in new}):
            self.record(split, [(arm, index, graded) for (of, arm, index), graded in new.items() if of == split])
        return len(new)

    def graded(self, split: str, arm: str, count: int) -> list[GradedProblem]:
        """The first `count` problems of an arm, in order; all must have been run."""
        return [self.done[split, arm, index] for index in range(count)]


def run_arms(
    book: Gradebook,
    make_sampler: Callable[[], tuple[Sampler, Tokenizer]],
    arms: Sequence[Arm],
    split: str,
    problems: Sequence[Problem],
    count: int,
    options: SamplingOptions,
    seed: int,
    few_shot: Sequence[Problem] = (),
) -> None:
    """Answers every problem `count` times under every arm that is not in the book yet; all arms share batches and seeds.

    The problems of `few_shot` stand worked out before each. `make_sampler` is called only if there is something to do, so
    that a finished stage loads no model.
    """
    todo = [(i, arm) for i in range(len(problems)) for arm in arms if (split, arm.name, i) not in book.done]
    if not todo:
        return
    sampler, tokenizer = make_sampler()
    label = f"{split}: {arms[0].name}" if len(arms) == 1 else f"{split}: {arms[0].name} ... {arms[-1].name}"
    with progress(label, total=len(todo) * count) as bar:
        for part in in_parts(todo, count):
            tasks = [Task(problems[i], count, seed, arm.weight) for i, arm in part]
            graded = rollouts(sampler, tokenizer, tasks, options, bar.advance, few_shot)
            book.record(split, [(arm.name, i, g) for (i, arm), g in zip(part, graded, strict=True)])
