"""The course of a run as its worker reported it, in fixed memory: thinned points, events, call times."""

import math
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import Final

import numpy as np
import numpy.typing as npt

from protos.messages import Progress

POINTS: Final = 512
"""Kept of a run. A longer one is thinned: each point then is the mean of 2, 4, 8, … boundaries."""
EVENTS: Final = 48
TIMED: Final = 32
"""Calls of a kind whose times are kept."""
STAGES: Final = ("upload", "queue", "forecast", "download")
COURSE_BYTES: Final = 32 * 1024
"""Memory of a course, about: its points take 24 bytes each, its events and times the rest."""

_POINT: Final = np.dtype([("step", "<i8"), ("seconds", "<f4"), ("loss", "<f4"), ("gain", "<f4"), ("coherence", "<f4")])
_MEASURED: Final = ("loss", "gain", "coherence")


@dataclass
class Happening:
    """Something worth telling of a run.

    Args:
        at: Unix seconds.
        step: of the run.
        kind: `registered`, `pushing`, `skipped`, `finished` or `evicted`.
        reason: of what was skipped.
        times: in a row.
    """

    at: float
    step: int
    kind: str
    reason: str = ""
    times: int = 1


@dataclass(frozen=True)
class Point:
    """A run at one boundary, or on average over some; None is not known.

    Args:
        step: of the last of them.
        seconds: since the job was registered.
        loss, gain, coherence: as `Progress` has them.
    """

    step: int
    seconds: float
    loss: float | None
    gain: float | None
    coherence: float | None


class Course:
    """What a page shows of one run. Used on the event loop only.

    Args:
        started: Unix seconds.
    """

    def __init__(self, started: float) -> None:
        self.started = started
        self.events: deque[Happening] = deque([Happening(started, 0, "registered")], maxlen=EVENTS)
        self.version = 0
        """Counts what was told."""
        self.thinned = 0
        """Counts how often the points were halved, or some taken back: those sent before are not those kept now."""
        self._points: npt.NDArray[np.void] | None = None
        self._count = 0
        self._stride = 1  # boundaries a point stands for
        self._open: list[tuple[float, ...]] = []  # of the point that is being made
        self._skipped: dict[str, int] = {}
        self._pushed = False
        self._took = {stage: deque[float](maxlen=TIMED) for stage in STAGES}

    def tell(self, progress: Progress) -> None:
        """Add how the run is doing. Of a run that has gone back, what lay ahead of it is dropped."""
        if self._points is None:
            self._points = np.zeros(POINTS, dtype=_POINT)
        self.version += 1
        self._note(progress)
        if progress.loss is None and len(self) and progress.step == next(self._rows(len(self) - 1))[0]:
            return  # of a run that ends at a boundary
        self._go_back_to(progress.step)
        unknown = math.nan
        self._open.append((
            progress.step,
            time.time() - self.started,
            unknown if progress.loss is None else progress.loss,
            progress.gain,
            unknown if progress.coherence is None else progress.coherence,
        ))  # fmt: skip
        if len(self._open) == self._stride:
            self._points[self._count] = _mean(self._open)
            self._count += 1
            self._open.clear()
        if self._count == POINTS:
            self._thin()

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

    def __len__(self) -> int:
        return self._count + bool(self._open)

    def points(self, start: int = 0) -> list[Point]:
        """The points from the `start`-th on, oldest first; the last may still be in the making."""
        return [_point(row) for row in self._rows(start)]

    def losses(self) -> list[tuple[int, float]]:
        """(step, loss) of the points whose loss is known."""
        return [(int(row[0]), row[2]) for row in self._rows(0) if not math.isnan(row[2])]

    def _rows(self, start: int) -> Iterator[tuple[float, ...]]:
        if self._points is not None:
            yield from self._points[start : self._count].tolist()
        if self._open and start <= self._count:
            yield _mean(self._open)

    def _go_back_to(self, step: int) -> None:
        assert self._points is not None
        ahead = [row for row in self._open if row[0] >= step]
        kept = int(np.searchsorted(self._points["step"][: self._count], step))
        if ahead or kept < self._count:
            self._open = [row for row in self._open if row[0] < step]
            self._count, self.thinned = kept, self.thinned + 1

    def _thin(self) -> None:
        assert self._points is not None
        rows = self._points.tolist()
        self._count = POINTS // 2
        for index in range(self._count):
            self._points[index] = _mean(rows[2 * index : 2 * index + 2])
        self._stride *= 2
        self.thinned += 1

    def _note(self, progress: Progress) -> None:
        """Make events of what is new."""
        for reason, count in progress.skipped.items():
            more = count - self._skipped.get(reason, 0)
            if more > 0:
                self.happened("skipped", step=progress.step, reason=reason, times=more)
        self._skipped = dict(progress.skipped)
        if progress.used and not self._pushed:
            self._pushed = True
            self.happened("pushing", step=progress.step)


def _mean(rows: list[tuple[float, ...]]) -> tuple[float, ...]:
    """The last step and second, and the means of what was measured."""
    last = rows[-1]
    columns = zip(*(row[2:] for row in rows), strict=True)
    return (int(last[0]), last[1], *(_mean_known(column) for column in columns))


def _mean_known(values: tuple[float, ...]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _point(row: tuple[float, ...]) -> Point:
    loss, gain, coherence = (None if math.isnan(value) else value for value in row[2:])
    return Point(int(row[0]), row[1], loss, gain, coherence)
