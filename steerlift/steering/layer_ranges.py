"""Decoder layers as a user names them: `0-9,12`."""

import re

from steerlift.records.errors import InputError

_RUN = re.compile(r"(\d+)(?:-(\d+))?")


def parse_runs(text: str, option: str) -> tuple[tuple[int, ...], ...]:
    """`0-2,5` -> ((0, 1, 2), (5,)); nothing for an empty text.

    Raises InputError for anything else and for a layer that is named twice.
    """
    runs: list[tuple[int, ...]] = []
    for part in text.replace(" ", "").split(",") if text else []:
        match = _RUN.fullmatch(part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first:
            raise InputError(f"{option} {text}: got {part!r}; expected runs of layers such as 0-9,10-19,20")
        runs.append(tuple(range(first, last + 1)))
    layers = [layer for run in runs for layer in run]
    if len(set(layers)) < len(layers):
        raise InputError(f"{option} {text}: a layer is named twice; expected each once")
    return tuple(runs)


def parse_layers(text: str, count: int, option: str) -> list[int]:
    """The layers of `text` in order, of a model that has `count`; all of them for an empty text.

    Raises InputError as `parse_runs` does, and for a layer that the model does not have.
    """
    layers = sorted(layer for run in parse_runs(text, option) for layer in run) or list(range(count))
    if layers[-1] >= count:
        raise InputError(f"{option} {text}: got layer {layers[-1]}, the model has 0 to {count - 1}")
    return layers
