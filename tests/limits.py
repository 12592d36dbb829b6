"""A disk that is full, as far as this process can tell: files cannot grow beyond a size."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager


def limit_file_size(most: int) -> None:
    """Writing beyond `most` bytes of a file fails from now on; Python ignores the signal that comes with it."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@contextmanager
def full_disk(most: int | None = None) -> Iterator[None]:
    """Inside it files end at `most` bytes, and afterwards nowhere; None leaves it to the block to call limit_file_size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        if most is not None:
            limit_file_size(most)
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
