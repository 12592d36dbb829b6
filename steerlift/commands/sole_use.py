"""One command at a time writes to a place: a second training of the same folder would mix its lines with the first's."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from steerlift.records.errors import InputError
from steerlift.records.progress import is_main_process


@contextmanager
def sole_use(config: object) -> Iterator[None]:
    """Within it no other command on this machine gets the folder or file that `config` writes to; a kill gives it back.

    Raises InputError where another command has it. Of several processes that train together the first one asks.
    """
    option = next((name for name in ("output_dir", "output_path") if getattr(config, name, None) is not None), None)
    if option is None or not is_main_process():
        yield
        return
    place = getattr(config, option)
    lock = FileLock(_lock_path(place))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(
            f"--{option} {place}: another steerlift command is writing there; wait for its end, or name another place"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _lock_path(place: Path) -> Path:
    """Not at the place itself, which a refused command should leave as it was."""
    user = os.getuid() if hasattr(os, "getuid") else 0  # who may not open what another user has left there
    name = hashlib.sha256(f"{user} {place.resolve()}".encode()).hexdigest()[:32]
    return Path(tempfile.gettempdir()) / f"steerlift-{name}.lock"
