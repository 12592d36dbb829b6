"""The commands that make a folder's parts again: what was typed, and every stage by its settings.

A stage that another command ran (`demo`, `search`) has its own settings in its file, so it can be run by itself too.
"""

import json
import shlex
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from typing import Any

from steerlift.report.page_data import RunFolder


def typed_commands(run: RunFolder) -> list[str]:
    """The different command lines that the parts were made by, oldest first."""
    origins = [part.content.get("provenance") or {} for part in run.parts()]
    dated = sorted((origin.get("date", ""), origin["command"]) for origin in origins if "command" in origin)
    return list(dict.fromkeys(command for _, command in dated))


def commands(run: RunFolder, verbs: Mapping[str, type[Any]]) -> list[str]:
    """A command for every part whose settings are those of a verb, in the order of the pipeline."""
    found = []
    for part in run.parts():
        settings = part.content if part in run.trainings else part.content.get("settings") or {}
        line = command_line({key: value for key, value in settings.items() if key != "provenance"}, verbs)
        found += [line] if line else []
    return list(dict.fromkeys(found))


def command_line(settings: Mapping[str, Any], verbs: Mapping[str, type[Any]]) -> str | None:
    """`steerlift <verb> ...` with the flags that differ from the defaults, a line each; None where no verb has all settings.

    The verb is the one with the fewest options besides: files do not name theirs.
    """
    known = {verb: {field.name: field for field in fields(config)} for verb, config in verbs.items()}
    able = [verb for verb, options in known.items() if settings and settings.keys() <= options.keys()]
    if not able:
        return None
    verb = min(able, key=lambda verb: len(known[verb]))
    flags = [_flag(known[verb][name], value) for name, value in settings.items()]
    return " \\\n  ".join([f"steerlift {verb}", *(shlex.join(flag) for flag in flags if flag)])


def _flag(field: Field[Any], value: Any) -> list[str]:  # noqa: ANN401 - any JSON value
    if field.default is MISSING:
        return [str(value)]
    # As the default would stand in a file: tuples are lists there, paths are texts.
    if value == json.loads(json.dumps(field.default, default=str)):
        return []
    if isinstance(value, bool):
        return [f"--{field.name}" if value else f"--no-{field.name.replace('_', '-')}"]
    return [f"--{field.name}", *map(str, value if isinstance(value, list) else [value])]
