"""Two commands that would write to one place: the second is refused, and a kill of the first frees the place."""

import subprocess
import sys
from pathlib import Path

import pytest

from steerlift.commands.main import main
from steerlift.commands.sole_use import sole_use
from steerlift.evaluation.config import EvaluateConfig
from steerlift.records.errors import InputError
from steerlift.training.config import TrainConfig

HOLDS = """
import sys, time
from pathlib import Path
from steerlift.commands.sole_use import sole_use
from steerlift.training.config import TrainConfig

with sole_use(TrainConfig(output_dir=Path(sys.argv[1]))):
    print("held", flush=True)
    time.sleep(600)
"""


def test_second_command_is_refused_until_the_first_is_killed(tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    arguments = ["steerlift", "train", "--output_dir", str(run), "--model_name", "./absent"]
    monkeypatch.setattr(sys, "argv", arguments)
    with subprocess.Popen([sys.executable, "-c", HOLDS, str(run)], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        assert main() == 2
        assert capsys.readouterr().err == (
            f"error: --output_dir {run}: another steerlift command is writing there; wait for its end, or name another place\n"
        )
        assert list(tmp_path.iterdir()) == []
        first.kill()
    assert main() == 2
    assert capsys.readouterr().err.startswith("error: model ./absent: no such folder")


def test_places_are_told_apart_however_they_are_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with sole_use(EvaluateConfig(output_path=Path("a.json"))):
        with sole_use(EvaluateConfig(output_path=Path("b.json"))):
            pass
        with (
            pytest.raises(InputError, match="another steerlift command"),
            sole_use(EvaluateConfig(output_path=tmp_path / "a.json")),
        ):
            pass
    with sole_use(EvaluateConfig(output_path=tmp_path / "a.json")):
        pass


def test_processes_that_train_together_share_the_place(tmp_path, monkeypatch):
    config = TrainConfig(output_dir=tmp_path)
    with sole_use(config):
        monkeypatch.setenv("RANK", "1")
        with sole_use(config):
            pass
