"""Interruptions, at a moment of a test's choice."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import pytest


@contextmanager
def interrupted(place: Any, name: str, *, at: int) -> Iterator[None]:
    """Ctrl-C, which ends the block, at call number `at` of this function."""
    real, calls = getattr(place, name), count(1)

    def interrupt(*given: Any, **options: Any) -> Any:
        if next(calls) == at:
            raise KeyboardInterrupt
        return real(*given, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place, name, interrupt)
        with pytest.raises(KeyboardInterrupt):
            yield
