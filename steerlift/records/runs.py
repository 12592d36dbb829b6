"""Files of a run: written whole under a temporary name and renamed, or line by line in a way that a kill cannot corrupt."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from steerlift.records.errors import InputError, MissingInputError


def check_writable(path: Path) -> None:
    """Raises InputError unless a file can be written at `path`: asked before long work, not after it."""
    try:
        if path.is_dir():
            raise IsADirectoryError(0, "it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; name a folder that you may write to") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path in `path`'s folder; it becomes `path` if the block succeeds and disappears if it fails.

    Raises InputError when the folder cannot be written.
    """
    check_writable(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp (and safetensors) make private files; a result should be as readable as any other new file of the user.
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """The same for a folder: complete or absent. An older folder at `path` is removed only once the new one is complete."""
    if path.is_file():
        raise InputError(f"cannot write {path}: it is a file; name a folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; name a folder that you may write to") from error
    temporary.chmod(0o777 & ~_umask())
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                file.chmod(0o666 & ~_umask())
        if path.exists():
            # Out of the way whole, not piece by piece: a kill leaves no half of it under its name.
            with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as aside:
                path.rename(Path(aside) / path.name)
                temporary.rename(path)
        else:
            temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def completions_path(output_path: Path) -> Path:
    """Where the completions behind a result stand: beside it, one JSON line per problem."""
    return output_path.with_name(f"{output_path.stem}.completions.jsonl")


def write_json(path: Path, content: Any) -> None:  # noqa: ANN401 - any JSON value
    """Writes `content` as indented JSON, whole or not at all. Raises InputError when there is no room for it."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    try:
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; make room or name another place") from error


def read_json(path: Path) -> Any:  # noqa: ANN401 - any JSON value
    """Reads a JSON file. Raises MissingInputError when it is not there and InputError when it is not JSON."""
    if not path.is_file():
        raise MissingInputError(f"{path}: no such file")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from error


class Journal:
    """A JSONL file to which records are appended, one flushed line each, so that a killed run can go on where it stopped."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Appends the rows in one write and flushes them to the disk."""
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise InputError(f"cannot write {self.path}: {error.strerror}; make room or name another place") from error

    def read(self) -> list[dict[str, Any]]:
        """All complete lines; a last line that a kill cut off is removed from the file. No file: no rows.

        Raises InputError, naming the line, when one before the last is no JSON object.
        """
        return [row for _, row in self._rows()]

    def rows(self) -> Iterator[dict[str, Any]]:
        """The same one by one, for files that are larger than memory."""
        return (row for _, row in self._rows())

    def keep_while(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Cuts the file off before the first row that is not wanted."""
        for start, row in self._rows():
            if not wanted(row):
                with self.path.open("r+b") as file:
                    file.truncate(start)
                return

    def _rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Each row and where in the file it begins."""
        if not self.path.exists():
            return
        with self.path.open("r+b") as file:
            start = 0
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    file.truncate(start)
                    return
                yield start, self._row(number, line)
                start += len(line)

    def _row(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise InputError(f"{self.path}, line {number}: expected a JSON object; the file was damaged, repair or delete it")
        return row
