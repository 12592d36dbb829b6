"""Finds what a client needs to talk to a server of `steerlift serve`: its key, and on this machine its private folder."""

import os
from pathlib import Path
from urllib.parse import urlsplit

from steerlift.records.errors import InputError, MissingInputError, ServerError
from steerlift.serving.access import LOCAL_HOSTS
from steerlift.serving.private import private_folder, read_key


def find_key(url: str) -> str:
    """The key of a server: STEERLIFT_API_KEY or VLLM_API_KEY, or the file of a server that this user runs on this machine.

    Raises MissingInputError when there is none, InputError for a URL that is none.
    """
    given = os.environ.get("STEERLIFT_API_KEY") or os.environ.get("VLLM_API_KEY")
    if given:
        return given
    folder = find_folder(url)
    if folder is None:
        raise InputError(f"{url} is another machine's: set STEERLIFT_API_KEY to its key")
    return read_key(folder)


def current_key(url: str) -> str:
    """The key that a server has now: one that has started anew has made another. Raises ServerError while there is none."""
    try:
        return find_key(url)
    except MissingInputError as error:
        raise ServerError(str(error)) from error


def find_folder(url: str) -> Path | None:
    """The private folder of a server on this machine; None for one elsewhere."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"server {url!r}: expected a URL such as http://127.0.0.1:8000")
    return private_folder(parts.port or 8000) if parts.hostname in LOCAL_HOSTS else None
