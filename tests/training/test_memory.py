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
    free = 2**30
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
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
