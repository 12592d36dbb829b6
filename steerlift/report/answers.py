"""The same problems answered by base, steered and fine-tuned model, if there is one, with what differs from the base marked."""

import random
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from steerlift.report.page_data import Row, Table

# A word or a sign with the space before it: what a reader would call a token, whatever the tokenizer.
_TOKEN = re.compile(r"\s*(?:\w+|[^\w\s])|\s+$")


@dataclass(frozen=True)
class Answer:
    """What one arm wrote, cut where it begins or ends to differ from the base's answer: (text, differs)."""

    kind: str
    name: str
    right: bool
    extracted: str | None
    pieces: list[tuple[str, bool]]


@dataclass(frozen=True)
class Example:
    """One problem and every arm's answer to it, the base's first."""

    question: str
    gold: str
    problem_type: str
    answers: list[Answer]


def side_by_side(
    answers: Mapping[str, list[dict[str, Any]]], names: Mapping[str, str], count: int, seed: int
) -> dict[str, Any] | None:
    """Problems drawn by the seed among all, the same completion of every arm; how many of each outcome there are."""
    problems = min(map(len, answers.values()))
    if not problems or not count:
        return None
    draws = min(len(row["completions"]) for rows in answers.values() for row in rows)
    rng = random.Random(seed)
    picked = [(index, rng.randrange(draws)) for index in sorted(rng.sample(range(problems), min(count, problems)))]

    def outcome(index: int, draw: int) -> tuple[str, ...]:
        return tuple("right" if rows[index]["completions"][draw]["correct"] else "wrong" for rows in answers.values())

    counts = Counter(outcome(index, draw) for index in range(problems) for draw in range(draws))
    shown = Counter(outcome(*pick) for pick in picked)
    total = problems * draws
    rows = [
        Row(kind[0], [*kind[1:], str(number), f"{100 * number / total:.1f}", str(shown[kind])])
        for kind, number in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]
    return {
        "problems": problems,
        "draws": draws,
        "seed": seed,
        "outcomes": Table("Every answer, by who was right", [*names.values(), "answers", "%", "shown below"], rows),
        "shown": [_example({kind: rows[index] for kind, rows in answers.items()}, names, draw) for index, draw in picked],
    }


def _example(rows: Mapping[str, dict[str, Any]], names: Mapping[str, str], draw: int) -> Example:
    completions = {kind: row["completions"][draw] for kind, row in rows.items()}
    base = completions["base"]["text"]
    answers = [
        Answer(kind, names[kind], c["correct"], c["extracted_answer"], differences(base, c["text"]))
        for kind, c in completions.items()
    ]
    return Example(rows["base"]["question"], rows["base"]["target_answer"], rows["base"].get("problem_type", ""), answers)


def differences(base: str, text: str) -> list[tuple[str, bool]]:
    """`text` in pieces, each with whether it differs from what `base` has there; the pieces joined are `text`."""
    before, after = _TOKEN.findall(base), _TOKEN.findall(text)
    pieces = []
    for operation, _, _, start, end in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if start < end:
            pieces.append(("".join(after[start:end]), operation != "equal"))
    return pieces
