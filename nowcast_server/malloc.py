"""glibc's malloc, as suits a server of large bodies. Elsewhere than on glibc nothing here does anything."""

import ctypes
from typing import Final

from nowcast_server.settings import MIB

TRIM_EVERY_S: Final = 30.0
_MALLOPT: Final = {-1: 32 * MIB, -2: 16 * MIB, -3: 8 * MIB, -8: 2}  # M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_ARENA_MAX


def keep_freed_memory() -> None:
    """Keep up to 32 MiB that was freed, instead of handing it back and taking it anew for each piece of a body.

    The page faults of that took two thirds of uvicorn's time for a large body (bench/ingest.py).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in _MALLOPT.items():
            mallopt(parameter, value)


def trim_freed_memory() -> None:
    """Return freed pages to the system, also those below memory still in use, which free() never returns. Releases the GIL."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
