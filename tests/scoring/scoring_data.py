"""The distinct answers of MATH, which several tests of this folder read."""

import gzip
import json
from pathlib import Path

with gzip.open(Path(__file__).parents[1] / "data" / "math_answers.txt.gz", "rt", encoding="utf-8") as lines:
    MATH_ANSWERS: list[str] = [json.loads(line) for line in lines]
