"""Scaling: whole training steps of the real trainer on one process, and on two with the same and with twice the problems."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from bench.measure import ROOT, SAME_SHARE, require_close, require_same_tokens
from bench.setting import Setting
from bench.table import Section, spread
from steerlift.records.runs import Journal
from steerlift.records.types import GradedProblem

TOLERANCE = 1e-4
PHASES = ("sampling_seconds", "grading_seconds", "update_seconds")
HEADINGS = (
    "training step",
    "processes",
    "problems",
    "sampling, s",
    "grading, s",
    "update, s",
    "whole step, s",
    "speed-up",
    "efficiency",
    "steps",
)


@dataclass(frozen=True)
class Sizes:
    """Steps of `problems` x `group` completions; the first `left_out` of each run are not counted."""

    problems: int = 16
    group: int = 8
    length: int = 48
    steps: int = 12
    left_out: int = 2
    rounds: int = 3


@dataclass(frozen=True)
class Case:
    """One way to run: on so many processes, with so many times the problems of a step."""

    name: str
    processes: int
    times: int


FULL = Sizes()
QUICK = Sizes(problems=2, group=2, length=8, steps=2, left_out=1, rounds=1)
ONE, STRONG, WEAK = Case("one process", 1, 1), Case("strong scaling", 2, 1), Case("weak scaling", 2, 2)
CASES = (ONE, STRONG, WEAK)


def every_second(graded: GradedProblem) -> list[float]:
    """The runs' reward function: every group has signal, so that no step is shorter than another for want of it."""
    return [float(place % 2) for place in range(len(graded.completions))]


def run(setting: Setting, sizes: Sizes) -> Section:
    """Runs all cases in turns, round by round, and compares the steps' seconds."""
    seconds: dict[Case, list[list[dict[str, float]]]] = {case: [] for case in CASES}
    agreement = ""
    with TemporaryDirectory() as scratch:
        for number in range(sizes.rounds):
            for case in CASES:
                folder = Path(scratch) / f"{case.name} {number}"
                train(setting, sizes, case, folder)
                rows = Journal(folder / "metrics.jsonl").read()[sizes.left_out :]
                seconds[case].append([{phase: row[phase] for phase in PHASES} for row in rows])
        agreement = check(*(Path(scratch) / f"{case.name} 0" for case in (ONE, STRONG)))
    table = [HEADINGS, *(cells(case, sizes, seconds[case], seconds[ONE]) for case in CASES)]
    return Section("Scaling from one process to two", _text(sizes), agreement, table=table)


def train(setting: Setting, sizes: Sizes, case: Case, folder: Path) -> None:
    """One run of main.py into `folder`, one thread a process."""
    options: Mapping[str, object] = {
        "model_name": setting.folder,
        "output_dir": folder,
        "problems": "embedded",
        "rewards": f"{__name__}:{every_second.__name__}",
        "seed": setting.seed,
        "dtype": "float32",
        "device": "cpu",
        "num_train_iters": sizes.steps,
        "gradient_accumulation_steps": sizes.problems * case.times,
        "num_chains": sizes.group,
        "max_completion_length": sizes.length,
        "eval_size": 1,
        "num_completions_eval": 1,
        "eval_every": sizes.steps,
        "save_every": sizes.steps,
    }
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        str(case.processes),
        "main.py",
    ]
    command += [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"{case.name}: training failed:\n{done.stderr}")


def check(one: Path, two: Path) -> str:
    """How far the same steps on one and on two processes agree, in words. Raises DifferentResultsError."""
    tokens = [[c["token_ids"] for row in _rows(folder, "completions") for c in row["completions"]] for folder in (one, two)]
    same = require_same_tokens("completions, strong scaling", tokens[1], tokens[0], SAME_SHARE)
    first = [torch.tensor([_rows(folder, "metrics")[0][name] for name in ("loss", "grad_norm")]) for folder in (one, two)]
    difference = require_close("loss and gradient norm of the first step, strong scaling", first[1], first[0], TOLERANCE)
    return (
        f"on two processes {same} completions are those of one process, and loss and gradient norm of the first step differ "
        f"by at most {difference:.0e} of the larger of the two (checked in this run; less than {SAME_SHARE:.0%} or more than "
        f"{TOLERANCE:.0e} would stop it)."
    )


def cells(
    case: Case, sizes: Sizes, rounds: Sequence[Sequence[Mapping[str, float]]], base: Sequence[Sequence[Mapping[str, float]]]
) -> list[str]:
    """The case's line of the table: seconds over all steps of all rounds; speed-ups over `base` round by round."""
    steps = [step for laps in rounds for step in laps]
    phases = [spread([step[phase] for step in steps]) for phase in PHASES]
    speed_ups = [case.times * _step_seconds(b) / _step_seconds(r) for r, b in zip(rounds, base, strict=True)]
    efficiencies = [100 * speed_up / case.processes for speed_up in speed_ups]
    compared = [f"**{spread(speed_ups, 'x')}**", spread(efficiencies, " %")] if case is not ONE else ["-", "-"]
    whole = spread([sum(step.values()) for step in steps])
    return [case.name, str(case.processes), str(sizes.problems * case.times), *phases, whole, *compared, str(len(steps))]


def _step_seconds(steps: Sequence[Mapping[str, float]]) -> float:
    return median(sum(step.values()) for step in steps)


def _rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return Journal(folder / f"{name}.jsonl").read()


def _text(sizes: Sizes) -> list[str]:
    return [
        f"`torchrun --nproc_per_node 1` or `2` of main.py on the embedded model and its problems: {sizes.group} completions a "
        f"problem, at most {sizes.length} new tokens, micro-batches of one group, one thread a process. Strong scaling is the "
        "same step on two processes, weak scaling twice the problems on two. A reward for every second completion gives every "
        "group signal, so that all steps do their work.",
        "Seconds are those that the trainer writes to metrics.jsonl: medians over the steps and, in brackets, the least and "
        f"the largest. {sizes.rounds} runs of {sizes.steps} steps of each kind, in turns, the first {sizes.left_out} of each "
        "left out. They are those of the first process: what it waits for the other after sampling counts as grading, what it "
        "waits after the backward passes as update. Speed-up is work per second over that of one process, taken round by "
        "round from the medians; efficiency is that by the number of processes.",
    ]
