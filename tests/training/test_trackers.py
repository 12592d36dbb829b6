import json
import os
import sqlite3
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from steerlift.records.errors import MissingDependencyError
from steerlift.training.trackers import check_trackers, open_trackers


def needs(package: str) -> pytest.MarkDecorator:
    reason = f"{package} is not installed: pip install 'steerlift[{package}]'"
    return pytest.mark.skipif(find_spec(package) is None, reason=reason)


SETTINGS = {"learning_rate": 0.5, "epsilon_high": None, "rewards": ["a:b"]}
# A process of its own for each: trackers start threads and processes, which have to be gone at its end.
SCRIPT = f"""
import sys, threading, warnings
from pathlib import Path
import psutil
from steerlift.records.errors import SteerliftError
from steerlift.training.trackers import check_trackers, open_trackers

warnings.simplefilter("error")
network = []
sys.addaudithook(lambda event, details: network.append(event) if event in ("socket.getaddrinfo", "webbrowser.open") else None)
which = (sys.argv[1] == "wandb", sys.argv[1] == "trackio")
check_trackers(*which)
folder = Path("run")
folder.mkdir(exist_ok=True)
try:
    (tracker,) = open_trackers(*which, "my project", "my run", {SETTINGS}, folder, sys.argv[2] == "resume")
except SteerliftError as error:
    sys.exit(f"refused: {{error}}")
for step in map(int, sys.argv[3:]):
    tracker.log({{"loss": 0.5 * step, "entropy": None}}, step)
    tracker.log({{"eval/pass_at_1": 10.0 * step}}, step)
tracker.finish()
assert [thread.name for thread in threading.enumerate()] == ["MainThread"], threading.enumerate()
assert not psutil.Process().children(), psutil.Process().children()
assert not network, network
"""


def run_script(folder: Path, tracker: str, how: str, *steps: int, mode: str = "offline") -> subprocess.CompletedProcess[str]:
    own = {"WANDB_MODE": mode, "HF_HUB_OFFLINE": "0", "HOME": str(folder), "TRACKIO_DIR": str(folder / "trackio")}
    own["HF_TOKEN"] = "hf_none"  # a stored token must not send anybody to the hub
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "TRACKIO", "XDG"))}
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, tracker, how, *map(str, steps)],
        cwd=folder,
        env={**kept, **own},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def track(folder: Path, tracker: str, how: str, *steps: int) -> None:
    done = run_script(folder, tracker, how, *steps)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def wandb_records(path: Path) -> list[Any]:
    """The records of an offline run's file: a header of 7 bytes, then blocks as in LevelDB's log, each record whole."""
    from wandb.proto import wandb_internal_pb2

    content, place, records = path.read_bytes(), 7, []
    while place < len(content):
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        assert kind == 1, "a record in parts"
        records.append(wandb_internal_pb2.Record.FromString(content[place + 7 : place + 7 + length]))
        place += 7 + length
    return records


def wandb_values(records: list[Any]) -> dict[int, dict[str, Any]]:
    """Step -> name -> value."""
    steps = {}
    for record in records:
        if record.HasField("history"):
            row = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            steps[row["_step"]] = {name: value for name, value in row.items() if not name.startswith("_")}
    return steps


@needs("wandb")
@pytest.mark.e2e
def test_wandb_holds_what_was_logged_and_a_resumed_run_is_the_same_run(tmp_path):
    for how, *steps in (("new", 1, 2), ("resume", 3), ("new", 1)):
        track(tmp_path, "wandb", how, *steps)
    paths = sorted((tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    first, resumed, other = (wandb_records(path) for path in paths)
    assert wandb_values(first) == {step: {"loss": 0.5 * step, "eval/pass_at_1": 10.0 * step} for step in (1, 2)}
    assert wandb_values(resumed) == {3: {"loss": 1.5, "eval/pass_at_1": 30.0}}
    runs = [next(record.run for record in records if record.HasField("run")) for records in (first, resumed, other)]
    assert runs[0].run_id == runs[1].run_id != runs[2].run_id
    assert {(run.project, run.display_name) for run in runs} == {("my project", "my run")}
    config = {item.key: json.loads(item.value_json) for item in runs[0].config.update}
    assert {name: config[name] for name in SETTINGS} == SETTINGS


@needs("wandb")
@pytest.mark.e2e
def test_wandb_without_an_account_is_one_line(tmp_path):
    done = run_script(tmp_path, "wandb", "new", 1, mode="online")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "refused: --use_wandb: No API key configured. Use `wandb login` to log in; "
        "WANDB_MODE=offline keeps the run on this machine"
    )


def trackio_rows(folder: Path) -> list[tuple[str, int, dict[str, Any]]]:
    """Run, step and metrics, in the order in which they were logged."""
    (database,) = (folder / "trackio").glob("*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id").fetchall()
    connection.close()
    return [(run, step, json.loads(metrics)) for run, step, metrics in rows]


@needs("trackio")
@pytest.mark.e2e
def test_trackio_holds_what_was_logged_and_a_resumed_run_is_the_same_run(tmp_path):
    # The run started last is another one of that name: the resumed run is known by its folder.
    track(tmp_path, "trackio", "new", 1, 2)
    (tmp_path / "run").rename(tmp_path / "first")
    track(tmp_path, "trackio", "new", 1)
    (tmp_path / "run").rename(tmp_path / "second")
    (tmp_path / "first").rename(tmp_path / "run")
    track(tmp_path, "trackio", "resume", 3)
    expected = []
    for run, *steps in (("my run", 1, 2), ("my run-2", 1), ("my run", 3)):
        for step in steps:
            expected += [(run, step, {"loss": 0.5 * step}), (run, step, {"eval/pass_at_1": 10.0 * step})]
    assert trackio_rows(tmp_path) == expected
    with sqlite3.connect(next((tmp_path / "trackio").glob("*.db"))) as connection:
        configs = [json.loads(row[0]) for row in connection.execute("SELECT config FROM configs").fetchall()]
    connection.close()
    assert len(configs) == 2
    assert all({name: config[name] for name in SETTINGS} == SETTINGS for config in configs)


def test_a_tracker_that_is_not_installed_says_what_to_install(monkeypatch, tmp_path):
    for package in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    check_trackers(False, False)
    assert open_trackers(False, False, "p", "r", {}, tmp_path, False) == []
    for which, package in (((True, False), "wandb"), ((False, True), "trackio")):
        message = rf"^--use_{package} needs {package}: pip install 'steerlift\[{package}\]'$"
        with pytest.raises(MissingDependencyError, match=message):
            check_trackers(*which)
        with pytest.raises(MissingDependencyError, match=message):
            open_trackers(*which, "p", "r", {}, tmp_path, False)
    assert list(tmp_path.iterdir()) == []
