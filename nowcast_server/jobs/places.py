"""Where a run has been on the map of training, in fixed memory."""

from typing import Final, NamedTuple

EVERY: Final = 10
"""Nowcasts from one place to the next, at first."""
MOST: Final = 32
"""Places kept of a run. Of a longer one every second is dropped, and the next come half as often."""


class Place(NamedTuple):
    """An embedded context."""

    step: int  # of its last snapshot
    loss: float  # at that step; NaN is not known
    vector: bytes  # (hidden,) float32


class Places:
    """The places of a run, oldest first. Used on the event loop only."""

    def __init__(self) -> None:
        self.kept: list[Place] = []
        self._gap, self._at = EVERY, -EVERY

    def due(self, nowcasts: int) -> bool:
        """Whether the context of the last of so many nowcasts is to be embedded; if so, the next is some nowcasts away."""
        due = nowcasts - self._at >= self._gap
        if due:
            self._at = nowcasts
        return due

    def add(self, place: Place) -> None:
        """Add a place. Of a run that has gone back, what lay ahead of it is dropped."""
        self.kept = [*(each for each in self.kept if each.step < place.step), place]
        if len(self.kept) == MOST:
            self.kept = self.kept[1::2]
            self._gap *= 2
