"""The real command line, in one process or several."""

import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

from steerlift.training.config import TrainConfig

ROOT = Path(__file__).parents[1]
MAIN = str(ROOT / "main.py")


def flags(config: TrainConfig) -> list[str]:
    """The command line of a config: what differs from the defaults."""
    parts: list[str] = []
    for field in fields(TrainConfig):
        value = getattr(config, field.name)
        if value == field.default:
            continue
        values = value if isinstance(value, tuple) else () if value is True else (value,)
        parts += [f"--{field.name}", *map(str, values)]
    return parts


def launch(*command: str, cwd: Path = ROOT, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Runs `python command...` to its end."""
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, cwd=cwd, env=environment(), timeout=timeout, check=False
    )


def environment() -> dict[str, str]:
    """Where a command finds the package and leaves the other core alone."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
