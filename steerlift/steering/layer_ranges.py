"""Decoder layers as a user names them: `0-9,12`."""

import re

from steerlift.records.errors import InputError

_RANGE = re.compile(r"(\d+)(?:-(\d+))?")


def parse_layers(text: str, count: int, option: str) -> list[int]:
    """The layers of `text` in order, each once; all `count` for an empty one. Raises InputError for anything else."""
    layers: set[int] = set()
    for part in text.split(",") if text else [f"0-{count - 1}"]:
        match = _RANGE.fullmatch(part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if not first <= last < count:
            raise InputError(f"{option} {text}: got {part!r}, expected layers between 0 and {count - 1}, as in 0-9,12")
        layers.update(range(first, last + 1))
    return sorted(layers)
