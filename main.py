"""`steerlift train` under the original's name."""

from steerlift.commands.main import run_verb

raise SystemExit(run_verb("train"))
