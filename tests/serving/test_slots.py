"""The slots against a plain list of requests, through random joins, departures and moves."""

import random

import pytest
import torch

from steerlift.serving.slots import Slots

LAYERS, HIDDEN, ROWS, TOKENS = 2, 4, 5, 40
CONFIGURATIONS = [None, *"abcdefg"]


def additions(configuration):
    """Layer 1 of `g` is left out, as vectors of some layers only are."""
    value = float(ord(configuration))
    layers = {0: torch.full((HIDDEN,), value), 1: torch.full((HIDDEN,), -value)}
    return {0: layers[0]} if configuration == "g" else layers


def slots():
    return Slots(additions, LAYERS, HIDDEN, ROWS, TOKENS, torch.float32, torch.device("cpu"))


def added(slots, layer, tokens):
    """What a decoder layer would add to each token."""
    return torch.index_select(slots.tables_SH[layer], 0, slots.slot_of_token_N[:tokens])


def wanted(rows, lengths, layer, padding):
    parts = []
    for configuration, length in zip(rows, lengths, strict=True):
        addition = additions(configuration).get(layer) if configuration else None
        parts.append((addition if addition is not None else torch.zeros(HIDDEN)).expand(length, HIDDEN))
    return torch.cat([*parts, torch.zeros(padding, HIDDEN)])


@pytest.mark.parametrize("seed", range(20))
def test_every_token_gets_the_addition_of_its_request(seed):
    rng = random.Random(seed)
    slotted, rows = slots(), []
    for _ in range(30):
        change_rows(rng, slotted, rows)
        lengths = [rng.randint(1, 5) for _ in rows]
        padding = rng.randint(0, 5)
        starts = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist(), *[sum(lengths)] * rng.randint(0, 2)])
        slotted.place(starts.to(torch.int32), sum(lengths) + padding)
        for layer in range(LAYERS):
            assert torch.equal(added(slotted, layer, sum(lengths) + padding), wanted(rows, lengths, layer, padding))


def change_rows(rng, slotted, rows):
    """As vLLM does: holes are filled by new requests, what is left of them by the last rows, then rows may swap."""
    gone = sorted(rng.sample(range(len(rows)), rng.randint(0, len(rows))), reverse=True)
    holes, joined, moved = sorted(gone), [], []
    for hole in gone:
        rows[hole] = "gone"
    for _ in range(rng.randint(0, ROWS - (len(rows) - len(gone)))):
        configuration = rng.choice(CONFIGURATIONS)
        if holes:
            row = holes.pop(0)
            rows[row] = configuration
        else:
            row = len(rows)
            rows.append(configuration)
        joined.append((row, configuration))
    while "gone" in rows:
        if rows[-1] == "gone":
            rows.pop()
        else:
            hole = rows.index("gone")
            moved.append((len(rows) - 1, hole, False))
            rows[hole] = rows.pop()
    if len(rows) > 1:
        one, other = rng.sample(range(len(rows)), 2)
        rows[one], rows[other] = rows[other], rows[one]
        moved.append((one, other, True))
    slotted.update(holes, joined, moved)


def test_a_run_without_requests_adds_nothing():
    slotted = slots()
    slotted.update([], [(0, "a")], [])
    slotted.place(torch.tensor([0, 3]), 3)
    assert added(slotted, 0, 3).any()

    slotted.place(None, TOKENS)

    assert not added(slotted, 0, TOKENS).any()


def test_a_configuration_is_computed_once_while_it_is_in_use():
    asked = []

    def counted(configuration):
        asked.append(configuration)
        return additions(configuration)

    slotted = Slots(counted, LAYERS, HIDDEN, ROWS, TOKENS, torch.float32, torch.device("cpu"))
    slotted.update([], [(0, "a"), (1, "a"), (2, "b")], [])
    slotted.update([0], [(3, "a")], [])
    assert sorted(asked) == ["a", "b"]

    slotted.update([1, 3], [], [])
    slotted.update([], [(0, "a")], [])

    assert sorted(asked) == ["a", "a", "b"]
