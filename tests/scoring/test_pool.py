"""Real worker processes: killed, lost, starved of their parent. Nothing here is simulated but the interruption."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from steerlift.scoring import pool as pool_module
from steerlift.scoring.pool import CheckerError, WorkerLostError, WorkerPool

pytestmark = pytest.mark.e2e

ENDLESS = ("1/2", "9^{9^{9^9}}")


@pytest.fixture(scope="module")
def pool():
    pool = WorkerPool(size=1)
    yield pool
    pool.close()


def process_of(pool: WorkerPool) -> "subprocess.Popen[str]":
    worker = pool._idle.get()
    pool._idle.put(worker)
    return worker._process


def child_of(pool: WorkerPool) -> int:
    """The forked process that compares."""
    worker = process_of(pool).pid
    (child,) = Path(f"/proc/{worker}/task/{worker}/children").read_text().split()
    return int(child)


needs_proc = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the child in /proc")


def test_a_worker_is_reused(pool):
    assert pool.ask("x+1", "1+x", 30) is True
    first = process_of(pool).pid
    assert pool.ask("x+1", "x+2", 30) is False
    assert process_of(pool).pid == first


@needs_proc
def test_at_the_limit_the_child_is_killed_and_replaced_at_once(pool):
    pool.ask("x+1", "1+x", 30)  # it is ready: only the limit is measured
    worker, stuck = process_of(pool).pid, child_of(pool)
    start = time.perf_counter()
    assert pool.ask(*ENDLESS, 0.3) is False
    assert 0.3 <= time.perf_counter() - start < 1.3
    wait_until_gone([stuck])
    start = time.perf_counter()
    assert pool.ask("x+1", "1+x", 30) is True
    assert time.perf_counter() - start < 1.3  # sympy was not imported again
    assert process_of(pool).pid == worker
    assert child_of(pool) != stuck


def test_a_worker_that_keeps_no_limit_is_killed(pool):
    pool.ask("x+1", "1+x", 30)
    stopped = process_of(pool)
    os.kill(stopped.pid, signal.SIGSTOP)
    assert pool.ask("x+1", "1+x", 0.1) is False
    assert stopped.wait() == -signal.SIGKILL
    assert pool.ask("x+1", "1+x", 30) is True


@needs_proc
@pytest.mark.parametrize("whose", [child_of, lambda pool: process_of(pool).pid], ids=["child", "worker"])
def test_a_process_that_dies_over_a_pair_costs_that_pair_only(pool, whose):
    pool.ask("x+1", "1+x", 30)
    child = child_of(pool)
    killer = threading.Timer(0.2, os.kill, (whose(pool), signal.SIGKILL))
    killer.start()
    with pytest.raises(WorkerLostError):
        pool.ask(*ENDLESS, 60)
    killer.join()
    wait_until_gone([child])
    assert pool.ask("x+1", "1+x", 30) is True


def test_a_worker_that_dies_while_idle_costs_nothing(pool):
    pool.ask("x+1", "1+x", 30)
    process_of(pool).kill()
    process_of(pool).wait()
    assert pool.ask("x+1", "1+x", 30) is True


def test_after_an_interruption_no_answer_is_taken_for_the_next(pool, monkeypatch):
    pool.ask("x+1", "1+x", 30)
    read_line = pool_module._read_line

    def interrupted(*_):
        monkeypatch.setattr(pool_module, "_read_line", read_line)
        raise KeyboardInterrupt

    monkeypatch.setattr(pool_module, "_read_line", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pool.ask("x+1", "1+x", 30)  # True is on its way
    assert pool.ask("x+1", "x+2", 30) is False


@needs_proc
def test_the_child_has_a_bound_on_memory(pool):
    import resource

    pool.ask("x+1", "1+x", 30)
    assert resource.prlimit(child_of(pool), resource.RLIMIT_AS)[0] == 2 * 1024**3
    assert resource.prlimit(child_of(pool), resource.RLIMIT_CORE)[0] == 0


def test_a_checker_that_cannot_start_is_an_error_and_not_a_wrong_answer(monkeypatch):
    monkeypatch.setattr(pool_module, "WORKER_COMMAND", (sys.executable, "-c", "pass"))
    broken = WorkerPool(size=1)
    with pytest.raises(
        CheckerError, match=r"^cannot start the answer checker: it ended while starting; try `.* -c pass` to see why$"
    ):
        broken.ask("x+1", "1+x", 1)
    greeting = 'print(\'{"error": "ImportError: no math_verify"}\')'
    monkeypatch.setattr(pool_module, "WORKER_COMMAND", (sys.executable, "-c", greeting))
    with pytest.raises(CheckerError, match="checker: ImportError: no math_verify; try"):
        broken.ask("x+1", "1+x", 1)
    broken.close()


PARENT = """
import json, os, signal, sys
from steerlift.scoring import equality, rewards
assert equality.is_equal("x+1", "1+x") is True
heavy = [name for name in ("torch", "transformers", "sympy", "math_verify") if name in sys.modules]
worker = equality._shared_pool()._idle.get()._process.pid
with open(f"/proc/{worker}/task/{worker}/children") as children:
    pids = [worker, *map(int, children.read().split())]
print(json.dumps({"pids": pids, "heavy": heavy}), flush=True)
"""


def run_parent(tmp_path: Path, ending: str) -> "tuple[subprocess.CompletedProcess[str], dict]":
    """A fresh interpreter in another folder that grades, tells its workers' process ids and ends in the given way."""
    package_root = str(Path(pool_module.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PARENT + ending],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": package_root},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done, json.loads(done.stdout)


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 10
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            while not _is_zombie(pid):
                os.kill(pid, 0)
                assert time.monotonic() < deadline, f"process {pid} is still there"
                time.sleep(0.05)


def _is_zombie(pid: int) -> bool:
    """Ended, but not yet collected by the container's first process."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] == "Z"


@needs_proc
def test_workers_end_with_the_interpreter_quietly_and_import_nothing_heavy_here(tmp_path):
    done, told = run_parent(tmp_path, "")
    assert (done.returncode, done.stderr) == (0, "")
    assert told["heavy"] == []
    assert len(told["pids"]) == 2
    wait_until_gone(told["pids"])


@needs_proc
def test_workers_end_by_themselves_when_the_parent_is_killed(tmp_path):
    done, told = run_parent(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")
    assert done.returncode == -signal.SIGKILL
    wait_until_gone(told["pids"])
