"""Writes problems for a small model, with worked solutions: folders with train.jsonl and test.jsonl, for --problems FOLDER.

    python recipes/arithmetic.py runs/problems

`sums` adds two numbers from 10 to 99 (43 + 28: "40 + 20 = 60; 3 + 8 = 11; 60 + 11 = 71"), `hundreds` two from 100 to 999,
`threes` a third from 2 to 9. `warmup` holds 400 training problems of `sums` and of `threes`, to teach a model the format on. No
problem stands in both files of a folder, whatever the order of its numbers; `threes` has the numbers of `sums`, those of its
test problems in its own.
"""

import json
import random
from itertools import combinations_with_replacement
from pathlib import Path

from as_command import as_command

from steerlift.records.runs import replacing

TRAIN, TEST, WARM_UP, SEED = 1500, 400, 400, 0

Row = dict[str, object]


def main(folder: Path) -> None:
    """Writes every folder."""
    rng = random.Random(SEED)
    numbers = _pairs(rng, range(10, 100))
    sums = [_row("sums", *two) for two in numbers]
    threes = [_row("threes", *two, rng.randint(2, 9)) for two in numbers]
    hundreds = [_row("hundreds", *two) for two in _pairs(random.Random(SEED), range(100, 1000))]
    for kind, rows in (("sums", sums), ("threes", threes), ("hundreds", hundreds)):
        _write(folder / kind, rows[:TRAIN], rows[TRAIN:])
    mixed = [row for rows in (sums, threes) for row in rows[: WARM_UP + 50]]
    rng.shuffle(mixed)
    _write(folder / "warmup", mixed[:-100], mixed[-100:])


def _pairs(rng: random.Random, numbers: range) -> list[list[int]]:
    """As many different pairs as there are problems, each in an order by chance."""
    pairs = rng.sample(list(combinations_with_replacement(numbers, 2)), TRAIN + TEST)
    return [rng.sample(pair, 2) for pair in pairs]


def _row(kind: str, *numbers: int) -> Row:
    """A problem with its solution: the hundreds, the tens, the ones, all together."""
    digits = [[number // power % 10 * power for number in numbers if number >= power] for power in (100, 10, 1)]
    parts = [part for part in digits if part]
    steps = [f"{' + '.join(map(str, part))} = {sum(part)}" for part in [*parts, list(map(sum, parts))]]
    return {
        "problem": f"What is {' + '.join(map(str, numbers))}?",
        "answer": str(sum(numbers)),
        "solution": "; ".join(steps),
        "subject": kind,
        "level": None,
        "unique_id": f"{kind}/{'+'.join(map(str, numbers))}",
    }


def _write(folder: Path, train: list[Row], test: list[Row]) -> None:
    for name, rows in (("train", train), ("test", test)):
        path = folder / f"{name}.jsonl"
        with replacing(path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        print(f"wrote {path}: {len(rows)} problems")


if __name__ == "__main__":
    as_command(main)
