"""The private folder of a running server, which only its user can enter: the key, what is served, vectors and weight files.

    key            what control paths demand: the user's own if one was given, else a random one
    settings.json  what vLLM's processes need to know of the command line
    server.json    pid, url, model ...; written when the server is ready
    vectors/       steering vectors, each under the digest of its content
    weights/       what a trainer hands over; nothing else is ever loaded into the model

It is in memory where the system has /dev/shm, and its place follows from the user and the port, so a trainer finds it.
"""

import json
import os
import secrets
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Any

import psutil

from steerlift.records.errors import InputError, MissingInputError
from steerlift.records.runs import read_json

FOLDER_VARIABLE = "STEERLIFT_SERVER_FOLDER"
"""Set for vLLM's processes; its presence is what turns the plugin on."""

VECTORS, WEIGHTS = "vectors", "weights"
_KEY, _SETTINGS, _SERVER, _PID = "key", "settings.json", "server.json", "pid"


def private_folder(port: int) -> Path:
    """Where the server that this user runs on `port` keeps its files."""
    memory = Path("/dev/shm")
    root = memory if os.access(memory, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())
    return root / f"steerlift-{os.getuid()}-{port}"


def create_folder(port: int, key: str | None) -> Path:
    """Makes the folder of a server that starts now, in place of one whose server is gone. `key` None: a random one.

    Raises InputError when a live server of this user has the port, or the place belongs to somebody else.
    """
    folder = private_folder(port)
    if folder.is_symlink() or folder.exists():
        _check_own(folder)
        pid = _pid(folder)
        if pid is not None and psutil.pid_exists(pid):
            raise InputError(
                f"--port {port}: a steerlift server (process {pid}) is running there; stop it or choose another port"
            )
        shutil.rmtree(folder)
    folder.mkdir(mode=0o700)
    for name in (VECTORS, WEIGHTS):
        (folder / name).mkdir(mode=0o700)
    write_private(folder / _PID, str(os.getpid()).encode())
    write_private(folder / _KEY, (key or secrets.token_urlsafe(32)).encode())
    return folder


def remove_folder(folder: Path) -> None:
    """Removes the folder with everything in it."""
    shutil.rmtree(folder, ignore_errors=True)


def key_path(folder: Path) -> Path:
    """The file with the key."""
    return folder / _KEY


def read_key(folder: Path) -> str:
    """The key of the server with this folder. Raises MissingInputError when no server of this user has it."""
    try:
        return read_private(folder, _KEY).decode()
    except FileNotFoundError as error:
        raise MissingInputError(
            f"{folder / _KEY}: no steerlift server of this user is running there; start `steerlift serve`"
        ) from error


def write_settings(folder: Path, settings: dict[str, Any]) -> None:
    """What the parent tells vLLM's processes."""
    write_private(folder / _SETTINGS, json.dumps(settings, indent=2).encode())


def read_settings(folder: Path) -> dict[str, Any]:
    """What the parent has told."""
    settings: dict[str, Any] = json.loads(read_private(folder, _SETTINGS))
    return settings


def write_server(folder: Path, content: dict[str, Any]) -> None:
    """Tells others, when the server is ready, what it serves."""
    write_private(folder / _SERVER, json.dumps(content, indent=2).encode())


def read_server(folder: Path) -> dict[str, Any] | None:
    """What a ready server has told; None before it is ready or when there is none."""
    path = folder / _SERVER
    if not path.is_file():
        return None
    content: dict[str, Any] = read_json(path)
    return content


def folder_of_this_server() -> Path:
    """In one of vLLM's processes: the folder that its parent made."""
    return Path(os.environ[FOLDER_VARIABLE])


def write_private(path: Path, content: bytes) -> None:
    """Writes a file that only this user can read, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    # O_EXCL follows no link and takes no file that somebody else has put there.
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_private(folder: Path, name: str) -> bytes:
    """The content of a plain file right inside `folder`. Raises InputError for a path, a link or another kind of file."""
    with open_private(folder, name) as file:
        return bytes(file.read())


def open_private(folder: Path, name: str) -> Any:  # noqa: ANN401 - a binary file
    """The same, opened for reading, so that what was checked is what is read."""
    if not name or name in (".", "..") or any(separator in name for separator in ("/", "\\", "\0")):
        raise InputError(f"file name {name!r}: expected the plain name of a file in the server's private folder")
    try:
        # O_NONBLOCK: a pipe in the place of a file must not hold the server up.
        descriptor = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InputError(f"file {name}: {error.strerror}; expected a plain file in the server's private folder") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"file {name}: expected a plain file in the server's private folder")
    return os.fdopen(descriptor, "rb")


def _check_own(folder: Path) -> None:
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise InputError(f"{folder} is not a folder of yours; remove it or choose another --port")


def _pid(folder: Path) -> int | None:
    try:
        return int(read_private(folder, _PID))
    except (OSError, ValueError):
        return None
