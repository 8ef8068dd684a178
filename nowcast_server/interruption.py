"""Interruptible work: whoever starts it says, with `interruptible`, what to call at each interruption point, which it marks,
however deep. The device uses them to cancel work nobody waits for, to stop what takes too long, and to let others have a turn.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final, TypeVar

Item = TypeVar("Item")

_CHECK: Final = ContextVar[Callable[[], None]]("interruption", default=lambda: None)


class Cancelled(Exception):
    """Nobody waits for this work any more."""


@contextmanager
def interruptible(check: Callable[[], None]) -> Iterator[None]:
    """Call `check` at each interruption point within. It may block, and what it raises ends the work."""
    token = _CHECK.set(check)
    try:
        yield
    finally:
        _CHECK.reset(token)


def interruption_point() -> None:
    """May this work go on? Raises whatever the check of `interruptible` raises."""
    _CHECK.get()()


def interruptible_items(items: Iterable[Item]) -> Iterator[Item]:
    """The items, with an interruption point before each."""
    for item in items:
        interruption_point()
        yield item
