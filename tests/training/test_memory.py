import resource
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest
import torch

from steerlift.records.errors import OutOfMemoryError
from steerlift.training.memory import naming_memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts all of a process's memory as its data")


def test_what_would_take_all_free_memory_is_refused_and_not_granted(monkeypatch):
    # Far more than a process may hold unused, as the stacks of a machine of many cores, which count as given back.
    free = 2**33
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free, total=16 * free))
    before = resource.getrlimit(resource.RLIMIT_DATA)
    # Nothing is written to it, so that nothing is taken where it is granted.
    torch.empty(free, dtype=torch.uint8)
    message = "step 3, update: out of memory; lower --micro_batch_size or"
    with pytest.raises(OutOfMemoryError, match=message), naming_memory("step 3, update", "--micro_batch_size"):
        torch.empty(free, dtype=torch.uint8)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    with naming_memory("step 3, update", "--micro_batch_size"):
        torch.empty(free // 2, dtype=torch.uint8)


def test_a_limit_that_the_user_set_stays():
    script = """
import resource, psutil, torch
from steerlift.training.memory import naming_memory
limit = psutil.Process().memory_info().data + 2**28
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
with naming_memory("step 1", "--batch_rows"):
    assert resource.getrlimit(resource.RLIMIT_DATA) == (limit, limit)
assert resource.getrlimit(resource.RLIMIT_DATA) == (limit, limit)
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_what_was_given_back_may_be_taken_again_unasked_and_counts_as_taken():
    script = """
from steerlift.commands.memory import keep_freed_memory
keep_freed_memory()
import resource, psutil, torch
from types import SimpleNamespace
from steerlift.training.memory import naming_memory

free = 2**32
psutil.virtual_memory = lambda: SimpleNamespace(available=free, total=4 * free)

def may_take():
    with naming_memory("step 1", "--micro_batch_size"):
        return resource.getrlimit(resource.RLIMIT_DATA)[0] - psutil.Process().memory_info().data

before = may_take()
taken = [torch.ones(2**22) for _ in range(64)]  # 16 MiB each
wall = torch.ones(2**18)
del taken
print(before // 2**20, may_take() // 2**20)
"""
    run = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    before, after = map(int, run.stdout.split())
    assert 950 <= before - after <= 1100
