"""Finds a model by hub id or folder and reads its files; whatever cannot be read is one line that names the model."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from steerlift.records.errors import InputError, MissingDependencyError, MissingInputError
from steerlift.records.progress import say
from steerlift.steering.adapters import adapter_base


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model comes from: a hub id or folder, and for an adapter the base model that it changes."""

    name: str
    base: str | None

    @property
    def whole(self) -> str:
        """The hub id or folder with the configuration and all weights."""
        return self.name if self.base is None else self.base


def find_source(name: str) -> Source:
    """Where the model `name` comes from; asks the hub or its cache about a hub id. Raises as `checked_name` does."""
    found = checked_name(name)
    return Source(found, _checked_base(found))


def checked_name(name: str) -> str:
    """The hub id or folder that `name` means. Raises MissingInputError for a folder without a model or an adapter, and for
    an adapter whose base is not there.

    Asks no hub. Commands call it for every model they will need before they start, so that a slip does not show after hours.
    """
    folder = Path(name).expanduser()
    if not (folder / "adapter_config.json").is_file():
        return _checked_whole(name)
    if (folder / "config.json").is_file():
        raise InputError(f"model {name} holds a whole model and an adapter; expected one: move adapter_config.json away")
    _checked_base(str(folder))
    return str(folder)


def _checked_base(name: str) -> str | None:
    with one_line(name):
        base = adapter_base(name)
    if base is None:
        return None
    with _prefixed(f"adapter {name}: its base "):
        return _checked_whole(base)


def _checked_whole(name: str) -> str:
    folder = Path(name).expanduser()
    if not (name.startswith((".", "/", "~")) or name.count("/") != 1 or folder.exists()):
        if folder.parent.is_dir():
            _say_that_it_is_a_hub_id(name)
        return name
    if not (folder / "config.json").is_file():
        found = "a folder without config.json" if folder.is_dir() else "no such folder"
        raise MissingInputError(f"model {name}: {found}; expected a folder with a saved model, or a hub id (owner/name)")
    return str(folder)


@cache
def _say_that_it_is_a_hub_id(name: str) -> None:
    """Once: it may be a slip in the name of a folder, which shows late, as an unreachable hub is asked for a minute."""
    say(f"model {name}: no such folder here, so this is a hub id")


def whole_config(source: Source) -> Any:  # noqa: ANN401 - transformers is untyped
    """The configuration of a model, or of an adapter's base."""
    from transformers import AutoConfig

    with naming_base(source):
        return from_pretrained(AutoConfig, source.whole)


def from_pretrained(loader: Any, name: str, **options: Any) -> Any:  # noqa: ANN401 - transformers is untyped
    """What one of transformers' Auto classes reads from the hub id or folder `name`."""
    hide_bars()
    with one_line(name):
        return loader.from_pretrained(name, **options)


def hide_bars() -> None:
    """Turns transformers' own progress bars off: ours say more, and a bar per file breaks plain logs."""
    from transformers.utils import logging

    logging.disable_progress_bar()


@contextmanager
def one_line(name: str) -> Iterator[None]:
    """Turns what transformers and peft raise about the model `name` into one line; our own errors pass as they are."""
    try:
        yield
    except (InputError, MissingInputError):
        raise
    except OSError as error:
        raise MissingInputError(f"model {name} cannot be loaded: {_first_line(error)}") from error
    except ImportError as error:
        raise MissingDependencyError(f"model {name} needs a package that is not installed: {_first_line(error)}") from error
    except (ValueError, KeyError, RuntimeError, AttributeError, TypeError, SafetensorError) as error:
        raise InputError(f"model {name} cannot be used: {_first_line(error)}") from error


@contextmanager
def naming_base(source: Source) -> Iterator[None]:
    """Where `source` is an adapter, errors about its base name both."""
    if source.base is None:
        yield
    else:
        with _prefixed(f"adapter {source.name}: its base "):
            yield


@contextmanager
def _prefixed(prefix: str) -> Iterator[None]:
    try:
        yield
    except (InputError, MissingInputError, MissingDependencyError) as error:
        raise type(error)(f"{prefix}{error}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
