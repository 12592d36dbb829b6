"""Problem files: JSON lines of {problem, answer, ...}, plain or gzipped, every field of every record checked."""

import gzip
import json
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from steerlift.records.errors import InputError, MissingInputError
from steerlift.records.runs import replacing
from steerlift.records.types import Problem

FIELDS = ("problem", "answer", "solution", "subject", "level", "unique_id")
SUFFIXES = (".jsonl", ".jsonl.gz")


def read_problems(path: Path) -> list[Problem]:
    """All problems of a .jsonl or .jsonl.gz file, in its order; blank lines are not records.

    A record without `unique_id` gets `<file>:<line>`. White space around an answer goes, the problem stays as it is.
    Raises MissingInputError when there is no such file and InputError, with the line, for a record that cannot be used.
    """
    if not path.is_file():
        raise MissingInputError(f"{path}: no such file; expected JSON lines of problems ({' or '.join(SUFFIXES)})")
    name = path.name.removesuffix(".gz").removesuffix(".jsonl")
    problems = []
    # Split at \n only: a problem text may hold U+2028 and its kin, which str.splitlines would break at.
    for number, line in enumerate(_content(path).split("\n"), start=1):
        if line.strip():
            record = _parsed(line, f"{path} line {number}")
            problems.append(problem_from(record, f"{path} line {number}", default_id=f"{name}:{number}"))
    if not problems:
        raise InputError(f"{path}: got a file without a record; expected one JSON object with a problem per line")
    return problems


def write_problems(path: Path, problems: Iterable[Problem]) -> None:
    """Writes what `read_problems` reads back as the same problems, whole or not at all; gzipped where the name ends in .gz.

    Raises InputError when there is no problem, as no file of none can be read, and when the file cannot be written.
    """
    content = "".join(json.dumps(asdict(problem), ensure_ascii=False) + "\n" for problem in problems).encode("utf-8")
    if not content:
        raise InputError(f"{path}: got no problem to write; expected at least one")
    if path.suffix == ".gz":
        content = gzip.compress(content, mtime=0)  # the same bytes for the same problems
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; make room or name another place") from error


def problem_from(record: Mapping[str, Any], where: str, default_id: str = "") -> Problem:
    """A checked Problem from a record's fields; `where` names the record in the message of the InputError."""
    unknown = [field for field in record if field not in FIELDS]
    if unknown:
        raise InputError(
            f"{where}: got the unknown field {unknown[0]!r}; expected only {', '.join(FIELDS)}; rename or remove it"
        )
    return Problem(
        problem=_text(record, "problem", where),
        answer=_text(record, "answer", where).strip(),
        solution=_optional_text(record, "solution", where, ""),
        subject=_optional_text(record, "subject", where, "unknown"),
        level=_level(record.get("level"), where),
        unique_id=_optional_text(record, "unique_id", where, default_id),
    )


def _content(path: Path) -> str:
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path} is not a whole gzip file ({error}); write it again or name it .jsonl") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; check its permissions") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path} line {line}: got bytes that are not UTF-8; save the file as UTF-8") from error


def _parsed(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: got {_shown(line)}, which is not JSON ({error}); expected one JSON object") from error
    if not isinstance(record, dict):
        raise InputError(f"{where}: got {_shown(record)}; expected a JSON object with problem and answer")
    return record


def _text(record: Mapping[str, Any], field: str, where: str) -> str:
    if field not in record:
        raise InputError(f"{where}: got no field {field!r}; expected problem and answer in every record; add it")
    text = _optional_text(record, field, where, "")
    if not text.strip():
        raise InputError(f"{where}: got an empty {field}; expected some text; fill it in or remove the record")
    return text


def _optional_text(record: Mapping[str, Any], field: str, where: str, default: str) -> str:
    value = record.get(field, default)
    if not isinstance(value, str):
        raise InputError(f"{where}: got {field} = {_shown(value)}; expected a string; put it in quotes")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: got half a surrogate pair in {field}; expected Unicode text; repair it") from error
    return value


def _level(value: object, where: str) -> int | None:
    """MATH spells levels `3`, `Level 3` and, where nobody knew, `Level ?`."""
    if value is None or value == "Level ?":
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    spelled = re.fullmatch(r"(?:Level )?([0-9]{1,3})", value) if isinstance(value, str) else None
    if spelled is None:
        raise InputError(f'{where}: got level = {_shown(value)}; expected a whole number, "Level 3" or null; correct it')
    return int(spelled[1])


def _shown(value: object) -> str:
    """The value as the file has it, on one line and cut to what a message can carry."""
    shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    shown = json.dumps(shown, ensure_ascii=False) if isinstance(value, str) else shown
    return shown if len(shown) <= 60 else shown[:57] + "..."
