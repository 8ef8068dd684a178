"""Start-time fair queueing."""

from collections.abc import Iterable
from typing import Final, Generic, TypeVar

Key = TypeVar("Key")

SMALLEST_CHARGE_S: Final = 1e-4
"""Charged at least, so that work too quick to measure takes turns as well."""


class Shares(Generic[Key]):
    """Who comes next: whoever has used the device least.

    Each key has a clock that runs while its work does; the smallest clock goes first. A new key, or one that comes back after a
    pause, starts where the hindmost of those who wait are: idling earns no credit, and newcomers do not push in.
    """

    def __init__(self) -> None:
        self._clocks: dict[Key, float] = {}
        self._now = 0.0
        self._prune_at = 1000

    def enter(self, key: Key, *, waiting: Iterable[Key]) -> None:
        """The key has something to do and had not before, unlike those `waiting`."""
        self._now = max(self._now, min((self._clocks.get(each, self._now) for each in waiting), default=0.0))
        if len(self._clocks) >= self._prune_at:  # a clock that lags behind means nothing any more
            self._clocks = {each: clock for each, clock in self._clocks.items() if clock > self._now}
            self._prune_at = 1000 + 2 * len(self._clocks)
        self._clocks[key] = max(self._clocks.get(key, 0.0), self._now)

    def order(self, keys: Iterable[Key]) -> list[Key]:
        """The keys, whoever is to be served first first."""
        return sorted(keys, key=lambda each: self._clocks.get(each, self._now))

    def serve(self, key: Key) -> None:
        """The key has its turn now."""
        self._now = max(self._now, self._clocks.get(key, self._now))

    def charge(self, key: Key, seconds: float) -> None:
        self._clocks[key] = max(self._clocks.get(key, 0.0), self._now) + max(seconds, SMALLEST_CHARGE_S)
