"""What a referee asks beyond a score: several weights tested at once, gains by subject and level, which problems were seen.

Works on plain records.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from steerlift.evaluation.results import Graded, percent, scores
from steerlift.problems.separation import fingerprints
from steerlift.records.errors import InputError
from steerlift.records.seen import SEEN, together
from steerlift.records.types import Problem
from steerlift.scoring.statistics import holm, paired_p_value


def p_values(arms: Mapping[str, Graded], base: Graded, k: int, seed: int) -> dict[str, dict[str, float]]:
    """Per arm the p-value of its difference from the base, alone and among all of them (Holm)."""
    alone = [paired_p_value(scores(graded, k), scores(base, k), seed) for graded in arms.values()]
    return {
        name: {"difference_p": one, "difference_p_holm": among_all}
        for name, one, among_all in zip(arms, alone, holm(alone), strict=True)
    }


def groups(arms: Mapping[str, Graded], k: int) -> dict[str, dict[str, dict[str, Any]]]:
    """Every arm's score by subject and by level, in percent, with the number of problems; left out where all are alike."""
    first = next(iter(arms.values()))
    kinds = {
        "subject": [graded.problem.subject for graded in first],
        "level": ["unknown" if graded.problem.level is None else str(graded.problem.level) for graded in first],
    }
    result: dict[str, dict[str, dict[str, Any]]] = {}
    for kind, names in kinds.items():
        if len(set(names)) < 2:
            continue
        result[kind] = {}
        for name in sorted(set(names)):
            places = [place for place, other in enumerate(names) if other == name]
            by_arm = {arm: scores([graded[place] for place in places], k) for arm, graded in arms.items()}
            result[kind][name] = {
                "problems": len(places),
                **{arm: percent(sum(values) / len(values)) for arm, values in by_arm.items()},
            }
    return result


def separation(metadata: Mapping[str, str], test: Sequence[Problem], dev: Sequence[Problem]) -> dict[str, Any]:
    """On which problems the result stands and on which things were chosen, so that anyone can check that none is in both.

    Raises InputError when the weight would be chosen on a problem to report on.
    """
    reported, chosen = fingerprints(test), fingerprints(dev)
    both = set(reported.split()) & set(chosen.split())
    if both:
        raise InputError(
            f"{len(both)} problems are both development and reported ones; expected none: name problems whose splits differ"
        )
    return {
        "reported_on": reported,
        "weight_chosen_on": chosen,
        "vectors_made_or_chosen_on": together(metadata.get(SEEN, "")),
        "known": SEEN in metadata,
    }
