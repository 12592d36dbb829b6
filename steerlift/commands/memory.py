"""How freed memory is kept, decided before torch is loaded.

glibc gives every freed tensor above 32 MB back to the system, which then has to clear new pages for the next one: 40 % of
the time of sampling from SmolLM2, seen on two cores. Kept, they are used again.
"""

import ctypes
import os
import sys

# From malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_NEVER = -1
_PAD = 64 * 2**20


def keep_freed_memory() -> None:
    """Tells glibc to keep what is freed; what the user has set by MALLOC_... stays, and other systems are left alone."""
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return
    for parameter, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER), (_M_TOP_PAD, _PAD)):
        mallopt(parameter, value)
