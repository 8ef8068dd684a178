"""Work that stops when nobody wants its result any more: the client has hung up, or its deadline has passed.

The forecaster is not told: whatever is called within `wanted_until` may ask, however deep. The streaming engine asks before each
of its units, so that a forecast of minutes ends milliseconds after its client.
"""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final, TypeVar

Item = TypeVar("Item")

_GIVEN_UP: Final[ContextVar[threading.Event | None]] = ContextVar("given_up", default=None)


class Unwanted(Exception):
    """Nobody waits for this any more."""


@contextmanager
def wanted_until(given_up: threading.Event) -> Iterator[None]:
    """Work within is wanted until the event is set, by whichever thread."""
    token = _GIVEN_UP.set(given_up)
    try:
        yield
    finally:
        _GIVEN_UP.reset(token)


def while_wanted(items: Iterable[Item]) -> Iterator[Item]:
    """The items, as long as somebody wants what is made of them.

    Raises:
        Unwanted: nobody does.
    """
    given_up = _GIVEN_UP.get()
    for item in items:
        if given_up is not None and given_up.is_set():
            raise Unwanted
        yield item
