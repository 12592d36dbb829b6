"""The metadata in which vectors say which problems they were made or chosen on: one line of short hashes."""

SEEN = "seen_problems"
"""The metadata key; `steerlift.problems.separation` makes the hashes and checks them."""


def together(*lines: str) -> str:
    """The hashes of all the lines."""
    return " ".join(sorted({mark for line in lines for mark in line.split()}))
