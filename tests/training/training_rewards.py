"""Reward functions for runs of the tests, given as `training_rewards:<name>`."""

from limits import limit_file_size

from steerlift.records.types import GradedProblem
from steerlift.scoring.rewards import math_reward

calls: list[GradedProblem] = []
"""The groups that the functions below have seen."""
most_bytes = [0]
"""Where files end on a disk that is full."""


def by_token(graded: GradedProblem) -> list[float]:
    """Differs between any two answers that do not begin alike."""
    return [completion.token_ids[0] / 100 for completion in graded.completions]


def overflowing(graded: GradedProblem) -> list[float]:
    """From the fourth group on so much that float32 cannot hold it: the loss is then no number."""
    calls.append(graded)
    ordinary = [float(grade.correct) for grade in graded.grades]
    return ordinary if len(calls) <= 3 else [1e39, *ordinary[1:]]


def interrupted(graded: GradedProblem) -> list[float]:
    """Ctrl-C while the seventh group is graded."""
    calls.append(graded)
    if len(calls) == 7:
        raise KeyboardInterrupt
    return math_reward(graded)


def on_a_disk_that_fills_up(graded: GradedProblem) -> list[float]:
    """While the seventh group is graded, files come to an end at `most_bytes`."""
    calls.append(graded)
    if len(calls) == 7:
        limit_file_size(most_bytes[-1])
    return math_reward(graded)
