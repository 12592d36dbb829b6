"""Progress of long work: a bar on a terminal, plain lines elsewhere. Always on stderr, so that stdout stays a result."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

PLAIN_INTERVAL_SECONDS = 10.0


def is_main_process() -> bool:
    """Whether this process speaks: the first of those that `accelerate launch` or torchrun has started, or the only one."""
    return _rank() == "0"


def say(line: str, of_one_process: bool = False) -> None:
    """One plain line to the user, on stderr; the first process alone speaks of what all see, each of what it alone may see."""
    if is_main_process():
        print(line, file=sys.stderr, flush=True)
    elif of_one_process:
        print(f"process {_rank()}: {line}", file=sys.stderr, flush=True)


def _rank() -> str:
    return os.environ.get("RANK", "0")


class Progress(Protocol):
    """What long work calls as it goes."""

    def advance(self, count: int = 1, note: str = "") -> None:
        """`count` more units are done; `note` is shown beside the count (a score, a loss)."""


@contextmanager
def progress(description: str, total: int, done: int = 0) -> Iterator[Progress]:
    """Shows the way from `done` to `total`; a terminal gets a bar with the time left, anything else a line every 10 s."""
    if sys.stderr.isatty() and is_main_process():
        with _bar(description, total, done) as bar:
            yield bar
    else:
        lines = _Lines(description, total, done)
        yield lines
        lines.close()


@contextmanager
def _bar(description: str, total: int, done: int) -> Iterator[Progress]:
    # Imported here: rich costs 50 ms that `--help` should not pay.
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as display:
        task = display.add_task(description, total=total, completed=done, note="")

        class Bar:
            def advance(self, count: int = 1, note: str = "") -> None:
                display.advance(task, count)
                if note:
                    display.update(task, note=note)

        yield Bar()


class _Lines:
    def __init__(self, description: str, total: int, done: int) -> None:
        self.description = description
        self.total = total
        self.done = done
        self.note = ""
        self.start = self.last = time.monotonic()

    def advance(self, count: int = 1, note: str = "") -> None:
        self.done += count
        self.note = note or self.note
        if time.monotonic() - self.last >= PLAIN_INTERVAL_SECONDS:
            self._print()

    def close(self) -> None:
        self._print()

    def _print(self) -> None:
        self.last = time.monotonic()
        note = f"  {self.note}" if self.note else ""
        say(f"{self.description}: {self.done}/{self.total}  {self.last - self.start:.0f} s{note}")
