"""Waiting for what another thread or process does."""

import time
from collections.abc import Callable


def until(happened: Callable[[], object], *, within_s: float = 120.0) -> None:
    """Return once it has happened.

    Raises:
        AssertionError: it has not, in time.
    """
    deadline = time.monotonic() + within_s
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)
