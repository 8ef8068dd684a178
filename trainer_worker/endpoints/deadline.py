"""Deadlines."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from protos.errors import DeadlineExceeded


class Deadline:
    """A moment on the monotonic clock.

    Args:
        seconds: from now; infinity for never.
    """

    def __init__(self, seconds: float) -> None:
        self._at = time.monotonic() + seconds

    @property
    def left_s(self) -> float:
        """Seconds that remain; negative once it has passed."""
        return self._at - time.monotonic()

    def check(self, what: str) -> float:
        """Seconds that remain.

        Raises:
            DeadlineExceeded: none do.
        """
        left_s = self.left_s
        if left_s <= 0:
            raise DeadlineExceeded(f"{what} took longer than it may")
        return left_s


_CURRENT: Final[ContextVar[Deadline | None]] = ContextVar("deadline", default=None)


@contextmanager
def bounded_by(deadline: Deadline) -> Iterator[None]:
    """Whatever waits for a socket within has until the deadline; see `left`."""
    token = _CURRENT.set(deadline)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def left(timeout_s: float | None) -> float | None:
    """What is left of a timeout under the deadline of `bounded_by`; 0 once that has passed. None: there is no end."""
    deadline = _CURRENT.get()
    if deadline is None:
        return timeout_s
    left_s = max(0.0, deadline.left_s)
    return left_s if timeout_s is None else min(timeout_s, left_s)
