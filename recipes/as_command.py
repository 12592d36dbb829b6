"""Runs a recipe's function as a command: its parameters are the arguments, and bad ones end in one line and exit code 2."""

from collections.abc import Callable
from typing import NoReturn

import tyro

from steerlift.commands.main import guarded


def as_command(main: Callable[..., None]) -> NoReturn:
    """Ends the process with the exit code. Parameters without a default are arguments in their order."""
    raise SystemExit(guarded(lambda: tyro.cli(main, config=(tyro.conf.PositionalRequiredArgs,))))
