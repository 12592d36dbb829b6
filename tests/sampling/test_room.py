"""How many rows are sampled at a time, and memory that was freed but is kept."""

import subprocess
import sys

import pytest
from tiny_models import tiny_model

from steerlift.sampling import room
from steerlift.sampling.room import MOST_ROWS, rows_that_fit

HOARDER = """
from steerlift.commands.memory import keep_freed_memory
keep_freed_memory()
import psutil, torch
from steerlift.sampling.room import give_back_freed_memory

def resident():
    return psutil.Process().memory_info().rss

before = resident()
taken = [torch.ones(2**22) for _ in range(32)]  # 16 MiB each
wall = torch.ones(2**18)  # what lies above them all is still in use
del taken
kept = resident() - before
assert give_back_freed_memory()
print(kept // 2**20, (resident() - before) // 2**20)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="freed memory is kept, and given back, by glibc alone")
def test_memory_that_was_freed_and_kept_is_given_back():
    run = subprocess.run([sys.executable, "-c", HOARDER], capture_output=True, text=True, check=True)
    kept, left = map(int, run.stdout.split())
    assert kept >= 500
    assert left <= 50


def rows_with(monkeypatch, budgets, wanted):
    """Rows of 100 tokens of a tiny model with these budgets, in rows, one after the other; how often memory was given back."""
    model, given = tiny_model("llama"), []
    config = model.config
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    per_row = int(1.5 * per_token * 100 + 16 * config.vocab_size)
    left = [rows * per_row for rows in budgets]
    monkeypatch.setattr(room, "memory_budget", lambda _: left.pop(0))
    monkeypatch.setattr(room, "give_back_freed_memory", lambda: given.append(True) or True)
    return rows_that_fit(model, 100, wanted), len(given)


@pytest.mark.parametrize(
    ("budgets", "wanted", "expected"),
    [
        ([7], 7, (7, 0)),
        ([9000], 5000, (MOST_ROWS, 0)),
        ([3, 5], 7, (5, 1)),
        ([3, 90], 7, (7, 1)),
        ([0, 0], 7, (1, 1)),
    ],
)
def test_memory_is_given_back_only_where_the_rows_need_it(monkeypatch, budgets, wanted, expected):
    assert rows_with(monkeypatch, budgets, wanted) == expected
