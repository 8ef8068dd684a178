"""Deadlines, which cut off what still waits when they pass."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from protos.errors import DeadlineExceeded

Item = TypeVar("Item")


class Deadline:
    """A moment on the monotonic clock, so many seconds from now; infinity for never."""

    def __init__(self, seconds: float) -> None:
        self._at = time.monotonic() + seconds
        self._cut: Callable[[], None] | None = None
        self._changing = threading.Lock()

    @property
    def left_s(self) -> float:
        """Seconds that remain; negative once it has passed."""
        return self._at - time.monotonic()

    def check(self, what: str) -> float:
        """Seconds that remain. Raises `DeadlineExceeded`: none do."""
        left_s = self.left_s
        if left_s <= 0:
            raise DeadlineExceeded(f"{what} took longer than it may")
        return left_s

    def watching(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, for work that shall end when it passes. Raises `DeadlineExceeded`: it has passed before the next one."""
        for item in items:
            self.check("the work")
            yield item

    def expire(self) -> None:
        """Let it pass now: nobody waits any more. May be called from any thread."""
        with self._changing:
            self._at = min(self._at, time.monotonic())
            if self._cut is not None:
                self._cut()

    @contextmanager
    def cutting(self, cut: Callable[[], None]) -> Iterator[None]:
        """Have `cut` called by another thread if the deadline passes within."""
        self._cut = cut
        timer = threading.Timer(max(0.0, min(self.left_s, threading.TIMEOUT_MAX)), self.expire)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            with self._changing:
                self._cut = None
