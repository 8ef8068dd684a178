"""Figures and reasons for people; an estimate of how many steps a run has saved."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Final

from pydantic import ByteSize

from nowcast_server.jobs.course import Happening
from protos.errors import ERRORS

UNKNOWN: Final = "–"
FEWEST: Final = 8  # points of each curve, without which nothing is said
WINDOW: Final = 5  # points a level is the mean of
NORMAL: Final = 0.6745  # median distance from the mean of a normal distribution of standard deviation 1
WIDTH: Final = 2.0  # standard errors to either side

Curve = Sequence[tuple[int, float]]  # (step, mean training loss), oldest first

_REASONS: Final = {
    "server_unavailable": "the server did not answer",
    "late": "the forecast did not come in time",
    "server_error": "the server failed",
    "bad_forecast": "the forecast was not finite, or of the wrong size",
    "worker_error": "something failed in the worker; its log has it",
    "history_missing": "the context was not complete",
}
_EVENTS: Final = {
    "registered": "The job was registered.",
    "pushing": "Forecasts began to push.",
    "finished": "The run ended; its history was given back.",
    "evicted": "The history was evicted to make room for others; the worker sends it again.",
}


def reason(word: str) -> str:
    """Why a nowcast came to nothing, as a phrase; an unknown word as it is."""
    if word in _REASONS:
        return _REASONS[word]
    return ERRORS[word].title[0].lower() + ERRORS[word].title[1:] if word in ERRORS else word.replace("_", " ")


def event(happening: Happening) -> str:
    if happening.kind == "skipped":
        often = "A forecast was" if happening.times == 1 else f"{happening.times:,} forecasts were"
        return f"{often} skipped: {reason(happening.reason)}."
    return _EVENTS.get(happening.kind, happening.kind)


def figure(value: float | None, digits: int = 4) -> str:
    """A number to so many significant digits."""
    if value is None or math.isnan(value):
        return UNKNOWN
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.{digits - 2}e}"
    return f"{value:.{digits}g}"


def share(value: float | None) -> str:
    """A share as a percentage."""
    return UNKNOWN if value is None else f"{value:.0%}"


def whole(value: float | None) -> str:
    """A whole number with separators."""
    return UNKNOWN if value is None else f"{value:,.0f}"


def size(value: int | None) -> str:
    """Bytes in the unit that suits them."""
    return UNKNOWN if value is None else ByteSize(value).human_readable(separator=" ")


def duration(seconds: float | None) -> str:
    """Seconds in the unit that suits them."""
    if seconds is None:
        return UNKNOWN
    if seconds < 0.0995:
        return f"{seconds * 1000:.2g} ms"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"


def clock(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at))


@dataclass(frozen=True)
class Saved:
    """An estimate of the steps saved so far."""

    steps: float  # fewer than the other run needed for the same loss; negative if more
    low: float  # where it may lie, given the scatter of both curves
    high: float  # infinite if the other has not come so far
    job: str  # the other run


def steps_saved(curve: Curve, other: Curve, *, job: str) -> Saved | None:
    """Compare the level of a run with the step at which another, without pushes, came to it. The level is the mean of the last
    `WINDOW` points, the other's curve the falling one that fits its points best. None if the curves are too short, or the other has
    not come so far yet and nothing says that it needs more steps.
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
    index = next((index for index, each in enumerate(levels) if each <= level), None)
    if not index:
        return None if index is None else steps[0]
    above, below = levels[index - 1], levels[index]
    return steps[index - 1] + (steps[index] - steps[index - 1]) * (above - level) / (above - below)


def saved(estimate: Saved | None) -> str:
    """Steps saved with their range."""
    if estimate is None:
        return UNKNOWN
    if math.isinf(estimate.high):
        least = f"at least {estimate.low:,.0f}"
        return least if estimate.low >= 0 else f"not known; took at most {-estimate.low:,.0f} steps more"
    if estimate.steps < 0:
        return f"none: took {-estimate.steps:,.0f} steps more ({-estimate.high:,.0f} to {-estimate.low:,.0f})"
    return f"{estimate.steps:+,.0f} ({estimate.low:+,.0f} to {estimate.high:+,.0f})"


def polyline(curve: Sequence[tuple[int, float]], *, width: int = 120, height: int = 28) -> str:
    """The points of a sparkline in an SVG of this size; empty for less than two."""
    known = [(step, loss) for step, loss in curve if math.isfinite(loss)]
    if len(known) < 2:
        return ""
    first, last = known[0][0], known[-1][0]
    low, high = min(loss for _, loss in known), max(loss for _, loss in known)
    across, down = (width - 4) / max(last - first, 1), (height - 4) / ((high - low) or 1)
    return " ".join(f"{2 + (step - first) * across:.1f},{2 + (high - loss) * down:.1f}" for step, loss in known)
