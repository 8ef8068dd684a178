"""How many steps a run has saved, as far as the training losses of a run without pushes can tell."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from statistics import mean, pstdev
from typing import Final

FEWEST: Final = 8
"""Points of each curve, without which nothing is said."""
WINDOW: Final = 5
"""Points a level is the mean of."""
WIDTH: Final = 2.0
"""Standard errors to either side."""

Curve = Sequence[tuple[int, float]]
"""(step, mean training loss), oldest first."""


@dataclass(frozen=True)
class Saved:
    """An estimate of the steps saved so far.

    Args:
        steps: fewer than the other run needed for the same loss; negative if more.
        low, high: where it may lie, given the scatter of both curves; `high` is infinite if the other has not come so far.
        job: the other run.
    """

    steps: float
    low: float
    high: float
    job: str


def steps_saved(curve: Curve, other: Curve, *, job: str) -> Saved | None:
    """Compare the level of a run with the step at which another, without pushes, came to it.

    Both levels are means of `WINDOW` points, and the other's curve counts as its lowest level so far. None if the curves are too
    short, or the other has not come so far yet and nothing says that it needs more steps.
    """
    if len(curve) < FEWEST or len(other) < FEWEST:
        return None
    level = mean(loss for _, loss in curve[-WINDOW:])
    step = mean(step for step, _ in curve[-WINDOW:])
    error = WIDTH * math.hypot(_scatter(curve), _scatter(other)) / math.sqrt(WINDOW)
    windows = [other[end - WINDOW : end] for end in range(WINDOW, len(other) + 1)]
    steps = [mean(at for at, _ in window) for window in windows]
    levels = list(accumulate((mean(loss for _, loss in window) for window in windows), min))
    early, reached, late = (_first_at(steps, levels, level + shift) for shift in (error, 0.0, -error))
    low = (steps[-1] if early is None else early) - step
    if late is None and low <= 0:
        return None
    return Saved((steps[-1] if reached is None else reached) - step, low, math.inf if late is None else late - step, job)


def _scatter(curve: Curve) -> float:
    """Standard deviation of a point about the curve, from the differences of neighbours."""
    return pstdev(later - earlier for (_, earlier), (_, later) in pairwise(curve)) / math.sqrt(2)


def _first_at(steps: Sequence[float], levels: Sequence[float], level: float) -> float | None:
    """Where falling levels come to one, between two steps along a line; None if never."""
    for index, each in enumerate(levels):
        if each <= level:
            if not index:
                return steps[0]
            above = levels[index - 1]
            return steps[index - 1] + (steps[index] - steps[index - 1]) * (above - level) / (above - each)
    return None
