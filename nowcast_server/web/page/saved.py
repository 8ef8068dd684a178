"""Estimate how many steps a run has saved, from the training losses of a run without pushes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Final

FEWEST: Final = 8
"""Points of each curve, without which nothing is said."""
WINDOW: Final = 5
"""Points a level is the mean of."""
NORMAL: Final = 0.6745
"""Median distance from the mean of a normal distribution of standard deviation 1."""
WIDTH: Final = 2.0
"""Standard errors to either side."""

Curve = Sequence[tuple[int, float]]
"""(step, mean training loss), oldest first."""


@dataclass(frozen=True)
class Saved:
    """An estimate of the steps saved so far."""

    steps: float  # fewer than the other run needed for the same loss; negative if more
    low: float  # where it may lie, given the scatter of both curves
    high: float  # infinite if the other has not come so far
    job: str  # the other run


def steps_saved(curve: Curve, other: Curve, *, job: str) -> Saved | None:
    """Compare the level of a run with the step at which another, without pushes, came to it.

    The level is the mean of the last `WINDOW` points, the other's curve the falling one that fits its points best. None if the
    curves are too short, or the other has not come so far yet and nothing says that it needs more steps.
    """
    if len(curve) < FEWEST or len(other) < FEWEST:
        return None
    level = mean(loss for _, loss in curve[-WINDOW:])
    step = mean(step for step, _ in curve[-WINDOW:])
    error = WIDTH * math.hypot(_scatter(curve), _scatter(other)) / math.sqrt(WINDOW)
    steps, levels = [at for at, _ in other], _falling([loss for _, loss in other])
    early, reached, late = (_first_at(steps, levels, level + shift) for shift in (error, 0.0, -error))
    low = (steps[-1] if early is None else early) - step
    if late is None and low <= 0:
        return None
    return Saved((steps[-1] if reached is None else reached) - step, low, math.inf if late is None else late - step, job)


def _falling(losses: Sequence[float]) -> list[float]:
    """The falling curve nearest to the losses, in squares: neighbours that rise are pooled."""
    pools: list[tuple[float, int]] = []
    for loss in losses:
        pools.append((loss, 1))
        while len(pools) > 1 and pools[-1][0] > pools[-2][0]:
            (late, more), (early, some) = pools.pop(), pools.pop()
            pools.append(((early * some + late * more) / (some + more), some + more))
    return [level for level, count in pools for _ in range(count)]


def _scatter(curve: Curve) -> float:
    """Standard deviation about a curve, by the median distance of points from the line through their neighbours: it may bend."""
    losses = [loss for _, loss in curve]
    bends = [abs(before - 2 * here + after) for before, here, after in zip(losses, losses[1:], losses[2:], strict=False)]
    return median(bends) / (NORMAL * math.sqrt(6))


def _first_at(steps: Sequence[float], levels: Sequence[float], level: float) -> float | None:
    """Where falling levels come to one, between two steps along a line; None if never."""
    for index, each in enumerate(levels):
        if each <= level:
            if not index:
                return steps[0]
            above = levels[index - 1]
            return steps[index - 1] + (steps[index] - steps[index - 1]) * (above - level) / (above - each)
    return None
