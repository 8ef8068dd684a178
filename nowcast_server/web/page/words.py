"""Format figures and reasons for people."""

import math
import time
from collections.abc import Sequence
from typing import Final

from pydantic import ByteSize

from nowcast_server.jobs.course import Happening
from nowcast_server.web.page.saved import Saved
from protos.errors import ERRORS

UNKNOWN: Final = "–"

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
    """An event as a sentence."""
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
        return f"{seconds * 1000:.2g} ms" if seconds >= 0.001 else "<1 ms"
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.0f} h" if minutes < 6000 else f"{minutes / 1440:.0f} d"


def clock(at: float) -> str:
    """A moment, in UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at))


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
