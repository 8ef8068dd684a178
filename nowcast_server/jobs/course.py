"""The course of a run as its worker reported it, in fixed memory: thinned points, events, call times."""

import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from protos.messages import Progress

POINTS: Final = 512  # kept of a run. A longer one is thinned: each point then is the mean of 2, 4, 8, … boundaries.
LARGEST: Final = 1e300  # a loss is drawn as; sums of larger ones would leave float64
EVENTS: Final = 48
EVERY: Final = 10  # nowcasts from one place on the map of training to the next, at first
MOST: Final = 32  # places kept of a run. Of a longer one every second is dropped, and the next come half as often.
TIMED: Final = 32  # calls of a kind whose times are kept
STAGES: Final = ("upload", "queue", "forecast", "download")
COURSE_BYTES: Final = 48 * 1024  # of a course, about: its points take 40 bytes each, events, times and places on the map the rest


@dataclass
class Happening:
    """Something worth telling of a run."""

    at: float  # Unix seconds
    step: int
    kind: str  # `registered`, `pushing`, `skipped`, `finished` or `evicted`
    reason: str = ""  # of what was skipped
    times: int = 1  # in a row


class Point(NamedTuple):
    """A run at one boundary, or on average over some: what was measured, as `Progress` has it; None is not known."""

    step: int  # the last
    seconds: float  # since the job was registered
    loss: float | None
    gain: float | None
    coherence: float | None


class Course:
    """What a page shows of one run, which `started` at these Unix seconds. Used on the event loop only."""

    def __init__(self, started: float) -> None:
        self.started = started
        self.events: deque[Happening] = deque([Happening(started, 0, "registered")], maxlen=EVENTS)
        self.version = 0  # counts what was told
        self._rows = np.empty((0, len(Point._fields)))  # of points; NaN is not known
        self._count = 0
        self._stride = 1  # boundaries a point stands for
        self._open: list[list[float]] = []  # of the point that is being made
        self._skipped: dict[str, int] = {}
        self._pushed = False
        self._took = {stage: deque[float](maxlen=TIMED) for stage in STAGES}

    def tell(self, progress: Progress) -> None:
        """Add how the run is doing. Of a run that has gone back, what lay ahead of it is dropped."""
        if not len(self._rows):
            self._rows = np.zeros((POINTS, len(Point._fields)))
        self.version += 1
        for reason, count in progress.skipped.items():
            if (more := count - self._skipped.get(reason, 0)) > 0:
                self.happened("skipped", step=progress.step, reason=reason, times=more)
        self._skipped = dict(progress.skipped)
        if progress.used and not self._pushed:
            self._pushed = True
            self.happened("pushing", step=progress.step)
        rows = self._open or self._rows[: self._count]
        if progress.loss is None and len(rows) and progress.step == rows[-1][0]:
            return  # of a run that ends at a boundary
        self._open = [row for row in self._open if row[0] < progress.step]
        self._count = int(np.searchsorted(self._rows[: self._count, 0], progress.step))
        loss = None if progress.loss is None else min(max(progress.loss, -LARGEST), LARGEST)
        told = (progress.step, time.time() - self.started, loss, progress.gain, progress.coherence)
        self._open.append([math.nan if value is None else value for value in told])
        if len(self._open) == self._stride:
            self._rows[self._count] = _mean(self._open)
            self._count += 1
            self._open.clear()
        if self._count == POINTS:
            self._rows[: POINTS // 2] = [_mean(pair) for pair in self._rows.reshape(POINTS // 2, 2, -1).tolist()]
            self._count //= 2
            self._stride *= 2

    def happened(self, kind: str, *, step: int = 0, reason: str = "", times: int = 1) -> None:
        """Add an event; the same in a row is one that is counted."""
        last = self.events[-1]
        if (last.kind, last.reason) == (kind, reason):
            last.at, last.step, last.times = time.time(), step, last.times + times
        else:
            self.events.append(Happening(time.time(), step, kind, reason, times))
        self.version += 1

    def took(self, stage: str, seconds: float) -> None:
        """Add how long a call, or a stage of one, has taken."""
        self._took[stage].append(seconds)

    def latency(self) -> dict[str, float]:
        """Median seconds of each stage that was measured, over the last `TIMED` calls."""
        return {stage: median(taken) for stage, taken in self._took.items() if taken}

    def points(self) -> list[Point]:
        """The points, oldest first; the last may still be in the making."""
        rows = self._rows[: self._count].tolist()
        if self._open:
            rows.append(_mean(self._open))
        return [Point(int(row[0]), row[1], *(None if math.isnan(value) else value for value in row[2:])) for row in rows]

    def curve(self, most: int) -> list[tuple[int, float]]:
        """At most so many (step, loss) over the whole run, each the mean of a stretch; without points whose loss is unknown."""
        known = [(point.step, point.loss) for point in self.points() if point.loss is not None]
        size = max(1, math.ceil(len(known) / most))
        parts = (known[start : start + size] for start in range(0, len(known), size))
        return [(part[-1][0], fmean(loss for _, loss in part)) for part in parts]


def _mean(rows: Sequence[Sequence[float]]) -> list[float]:
    """The last step and second, and the means of what was measured."""
    known = ([value for value in column if not math.isnan(value)] for column in list(zip(*rows, strict=True))[2:])
    return [*rows[-1][:2], *(fmean(values) if values else math.nan for values in known)]


class Place(NamedTuple):
    """Where a run was on the map of training: an embedded context."""

    step: int  # of its last snapshot
    loss: float  # at that step; NaN is not known
    vector: NDArray[np.float32]  # (hidden,)


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
