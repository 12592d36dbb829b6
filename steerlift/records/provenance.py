"""What a result was run on: it stands in every result file."""

import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_LIBRARIES = ("torch", "transformers", "tokenizers", "math-verify", "numpy", "scipy")


def package_version() -> str:
    """The version of steerlift, `0+unknown` in a checkout that was never installed."""
    return _version("steerlift") or "0+unknown"


def provenance(*, model: str | None = None, seed: int | None = None, device: str | None = None) -> dict[str, Any]:
    """Versions, machine, date (UTC, ISO 8601) and command line, with the model, seed and device given."""
    libraries = {name: _version(name) for name in _LIBRARIES}
    return {
        "steerlift": package_version(),
        "python": platform.python_version(),
        "libraries": {name: found for name, found in libraries.items() if found},
        "machine": f"{platform.system()} {platform.machine()}",
        "model": model,
        "seed": seed,
        "device": device,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join([_program(sys.argv[0]), *sys.argv[1:]]),
    }


def _program(name: str) -> str:
    """As one types it: where an environment keeps its programs is nobody else's business."""
    return Path(name).name if Path(name).is_absolute() else name


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
