"""Which problems something was chosen on, written beside it, so that nobody reports on the same ones by mistake."""

from collections.abc import Iterable, Mapping

from steerlift.problems.splits import digest, near_key
from steerlift.records.errors import InputError
from steerlift.records.seen import SEEN
from steerlift.records.types import Problem

_HEX = 10


def fingerprints(problems: Iterable[Problem]) -> str:
    """One short hash per problem, sorted, as one line; near copies of a problem have the same."""
    return " ".join(sorted({digest(near_key(problem.problem))[:_HEX] for problem in problems}))


def check_unseen(metadata: Mapping[str, str], problems: Iterable[Problem], what: str) -> None:
    """Raises InputError when `what`, whose metadata these are, was made or chosen on one of the problems to report on."""
    seen = set(metadata.get(SEEN, "").split())
    known = [problem for problem in problems if fingerprints([problem]) in seen]
    if known:
        raise InputError(
            f"{what}: {len(known)} of the problems to report on were used to make or choose it ({known[0].problem[:60]!r}); "
            "report on problems it has not seen (another --split)"
        )
