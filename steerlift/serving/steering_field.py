"""The `steering` field of a request: checked, brought into one form, and sealed so that only this server can have made it.

    {"vector": NAME, "weight": w}      or a list of such, whose additions are summed

w is a number, or a list with one number per decoder layer of the model. The canonical form is JSON, [[digest, weight], ...],
sorted by the digest of the vectors' file: what a name stands for may change later, what a running request uses may not.
"""

import hashlib
import hmac
import json
from collections.abc import Callable
from typing import Any

from steerlift.records.errors import InputError

FIELD = "steering"
XARG = "steerlift"
"""The key in vLLM's `vllm_xargs` under which the sealed canonical form travels to the worker."""

LARGEST_WEIGHT = 1000.0
MOST_VECTORS = 64

Weight = float | list[float]
_EXPECTED = 'expected {"vector": NAME, "weight": number or one number per layer} or a list of such'


def canonical(field: Any, digest_of: Callable[[str], str], layers: int) -> str | None:  # noqa: ANN401 - any JSON value
    """The canonical form of a `steering` field; None when it adds nothing (null, an empty list, weights of 0).

    `digest_of` gives the digest of a named vector or raises InputError; `layers` counts the model's decoder layers. Raises
    InputError with the reason for everything else that is no steering.
    """
    if field is None:
        return None
    entries = field if isinstance(field, list) else [field]
    if len(entries) > MOST_VECTORS:
        raise InputError(f"steering: got {len(entries)} vectors, expected at most {MOST_VECTORS}")
    sums: dict[str, list[float]] = {}
    for entry in entries:
        name, weight = _entry(entry, layers)
        per_layer = weight if isinstance(weight, list) else [weight] * layers
        digest = digest_of(name)
        before = sums.get(digest, [0.0] * layers)
        sums[digest] = [one + other for one, other in zip(before, per_layer, strict=True)]
    form = [[digest, _shortest(sums[digest])] for digest in sorted(sums) if any(sums[digest])]
    return json.dumps(form, separators=(",", ":")) if form else None


def parse_canonical(text: str) -> list[tuple[str, Weight]]:
    """The digests and weights of a canonical form."""
    return [(digest, weight) for digest, weight in json.loads(text)]


def seal(text: str, key: str) -> str:
    """The canonical form with a mark that needs the server's key: what vLLM is handed."""
    return f"{_mark(text, key)}:{text}"


def unseal(sealed: Any, key: str) -> str:  # noqa: ANN401 - whatever a client sent
    """The canonical form again. Raises InputError for anything that this server has not sealed."""
    mark, _, text = sealed.partition(":") if isinstance(sealed, str) else ("", "", "")
    if not hmac.compare_digest(mark.encode(), _mark(text, key).encode()):
        raise InputError(f"vllm_xargs.{XARG} is the server's own; ask for steering with the field {FIELD!r}")
    return text


def cache_salt(text: str, client_salt: str | None) -> str:
    """What keeps the prefix cache of one configuration (and of a client's own salt) apart from all others."""
    return hashlib.sha256(json.dumps([text, client_salt]).encode()).hexdigest()


def _mark(text: str, key: str) -> str:
    return hmac.new(key.encode(), text.encode(), hashlib.sha256).hexdigest()


def _entry(entry: Any, layers: int) -> tuple[str, Weight]:  # noqa: ANN401 - any JSON value
    if not isinstance(entry, dict):
        raise InputError(f"steering: got {_short(entry)}, {_EXPECTED}")
    unknown = sorted(entry.keys() - {"vector", "weight"})
    if unknown:
        raise InputError(f"steering: unknown key {_short(unknown[0])}, {_EXPECTED}")
    name, weight = entry.get("vector"), entry.get("weight")
    if not isinstance(name, str):
        raise InputError(f"steering.vector: got {_short(name)}, expected the name of a vector")
    if isinstance(weight, list):
        if len(weight) != layers:
            raise InputError(f"steering.weight: got {len(weight)} numbers, expected one, or {layers}: one per layer")
        return name, [_number(value) for value in weight]
    return name, _number(weight)


def _number(value: Any) -> float:  # noqa: ANN401 - any JSON value
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= LARGEST_WEIGHT:
        raise InputError(
            f"steering.weight: got {_short(value)}, expected a number between -{LARGEST_WEIGHT:g} and {LARGEST_WEIGHT:g}"
        )
    return float(value)


def _shortest(weights: list[float]) -> Weight:
    return weights[0] if len(set(weights)) == 1 else weights


def _short(value: Any) -> str:  # noqa: ANN401 - any JSON value
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
