"""Draws the results of an evaluation, as `steerlift plot` does."""

from steerlift.commands.main import run_verb

raise SystemExit(run_verb("plot"))
