"""Writes problems about sums of two-digit numbers, with worked solutions: train.jsonl and test.jsonl, for --problems FOLDER.

    python recipes/sums.py runs/sums

Two numbers are level 1, three are level 2. No sum, whatever the order of its numbers, stands in both files.
"""

import json
import random
import sys
from itertools import combinations_with_replacement
from pathlib import Path

from steerlift.records.runs import replacing

TRAIN, TEST, SEED = 1200, 400, 0


def problems(count_of_numbers: int, rng: random.Random) -> list[dict[str, object]]:
    """Sums of so many numbers from 10 to 99, in a random order, each with its tens and ones worked out."""
    every = list(combinations_with_replacement(range(10, 100), count_of_numbers))
    rows: list[dict[str, object]] = []
    for combination in rng.sample(every, (TRAIN + TEST) // 2):
        numbers = rng.sample(combination, len(combination))
        tens, ones = [10 * (n // 10) for n in numbers], [n % 10 for n in numbers]
        spelled = [" + ".join(map(str, part)) for part in (numbers, tens, ones)]
        solution = f"{spelled[1]} = {sum(tens)}; {spelled[2]} = {sum(ones)}; {sum(tens)} + {sum(ones)} = {sum(numbers)}"
        rows.append(
            {
                "problem": f"What is {spelled[0]}?",
                "answer": str(sum(numbers)),
                "solution": solution,
                "subject": "Sums",
                "level": count_of_numbers - 1,
                "unique_id": f"sums/{'+'.join(map(str, combination))}",
            }
        )
    return rows


def main(folder: Path) -> None:
    """Writes both files."""
    rng = random.Random(SEED)
    by_level = [problems(count, rng) for count in (2, 3)]
    share = TRAIN // len(by_level)
    files = {"train": [r for rows in by_level for r in rows[:share]], "test": [r for rows in by_level for r in rows[share:]]}
    for name, rows in files.items():
        rng.shuffle(rows)
        with replacing(folder / f"{name}.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        print(f"wrote {folder / f'{name}.jsonl'}: {len(rows)} problems")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python recipes/sums.py FOLDER")
    main(Path(sys.argv[1]))
