"""Turn a forecast into a push: its direction, its length, and when in a run."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from protos.errors import BadForecast
from trainer_worker.errors import BadArgument
from trainer_worker.weights.flat import Piece

CONTEXT: Final = 5  # snapshots a forecast is made from; the shipped networks were fitted to so many
FORECASTERS: Final = {"glide": "spectral", "shadow": "linear", "jump": "nino"}  # the best of each mode (bench/acceleration/results)
GRAPH_FREE: Final = ("spectral", "linear", "wnn", "average", "last")  # forecasters to which a poor wiring makes no difference
GAIN: Final = 0.85  # for Adam; `weights.optimizers.gain_for` knows others
MATRICES: Final = (0.5, 0.7)  # cosines with the movement seen: up to the first a push has no length, from the second on all of it
VECTORS: Final = (0.8, 0.9)  # stricter, as a few numbers can agree by chance: what stale forecasts then cost is in bench/hostile.py


@dataclass(frozen=True)
class Push:
    """How forecasts push the weights.

    Tensor by tensor, a push goes in the direction of the forecast. Its length per interval is at most `gain` times the movement
    per interval of the context, less the more the two directions differ, and 0 if their cosine is 0.5 or less (of vectors, 0.8).
    The next context sees the push, so drift that persists is multiplied by up to 1 / (1 - gain); a gain of 1 would explode. Where
    training takes pushes back, as at learning rates that are too high, the gain falls by itself (`brake`).

    Args:
        gain: share of the movement seen that a push may add; 0 <= gain < 1. None for 0.85, with Muon 0.7, with AdEMAMix 0.5.
        start: share of the run after which pushes begin.
        fade: share of the run after which the gain falls linearly, to 0 at the end. `start` and `fade` need `max_steps`.
        hold_norms: keep the norms of weight matrices: turn them, do not enlarge them.
        horizon: how far ahead to forecast, in intervals; None for what suits the forecaster.

    Raises:
        BadArgument: a value is out of range.
    """

    gain: float | None = None
    start: float = 0.05
    fade: float = 0.6
    hold_norms: bool = True
    horizon: int | None = None

    def __post_init__(self) -> None:
        if self.gain is not None and not 0 <= self.gain < 1:
            raise BadArgument("push", f"gain must be at least 0 and below 1 (at 1 the weights explode), not {self.gain!r}")
        for name in ("start", "fade"):
            if not 0 <= getattr(self, name) <= 1:
                raise BadArgument("push", f"{name} must be a share of the run from 0 to 1, not {getattr(self, name)!r}")
        if self.horizon is not None and (type(self.horizon) is not int or self.horizon < 1):
            raise BadArgument("push", f"horizon must be a positive whole number of intervals, or None, not {self.horizon!r}")

    def gain_at(self, step: int, *, max_steps: int | None) -> float:
        """The gain of a push that begins at a step."""
        gain = GAIN if self.gain is None else self.gain
        if max_steps is None:
            return gain
        done = step / max_steps
        if done < self.start or done >= 1:
            return 0.0
        return gain * min(1.0, (1 - done) / max(1 - self.fade, 1e-9))


@torch.no_grad()
def shape(forecast: Tensor, context: Sequence[Tensor], pieces: Iterable[Piece], *, gain: float, hold_norms: bool) -> Tensor:
    """Make a forecast (n,) float32 into the displacement of one interval, in place, whose length may be `gain` times the movement
    seen in its context (snapshots (n,), oldest first, an interval apart), tensor by tensor.

    Entries that are equal in all snapshots stay as they are: padding rows, masked weights, unused layers. With `hold_norms`
    tensors of two and more dimensions are turned, and keep their norms. Raises BadForecast: the forecast is not finite.
    """
    _check_finite(forecast)
    for piece in pieces:
        states = [state[piece.start : piece.stop] for state in context]
        part = forecast[piece.start : piece.stop]
        last = states[-1].float()
        moved = (last - states[0].float()).div_(len(states) - 1)
        unmoved = _unmoved(states)
        part -= last
        part.masked_fill_(unmoved, 0.0)
        longest = _bound(part, moved, gain=gain, agreeing=MATRICES if piece.parameter.dim() > 1 else VECTORS)
        if hold_norms and piece.parameter.dim() > 1:  # only now: of a long displacement, what is left would point inward
            part += last
            _hold_norm(part, last)
            part -= last
            part.masked_fill_(unmoved, 0.0)
            part *= _still_within(part, moved, longest=longest)
    _check_finite(forecast)
    return forecast


def displacement(forecast: Tensor, context: Sequence[Tensor], pieces: Iterable[Piece], *, hold_norms: bool) -> Tensor:
    """All of a forecast's displacement, in place: what a jump adds. For arguments and errors see `shape`."""
    _check_finite(forecast)
    for piece in pieces:
        states = [state[piece.start : piece.stop] for state in context]
        part, start = forecast[piece.start : piece.stop], states[-1].float()
        unmoved = _unmoved(states)
        part.copy_(torch.where(unmoved, start, part))
        if hold_norms and piece.parameter.dim() > 1:
            _hold_norm(part, start)
        _check_finite(part.to(piece.parameter.dtype))
        part -= start
        part.masked_fill_(unmoved, 0.0)
    return forecast


def norm(part: Tensor) -> float:
    """Euclidean norm, summed in float64: in float32 that of 67 million weights is off by 3%."""
    return float(torch.linalg.vector_norm(part, dtype=torch.float64))


def dot(first: Tensor, second: Tensor) -> float:
    """Inner product of two float32 vectors, summed in float64 over pieces of a million."""
    pairs = zip(torch.split(first, 2**20), torch.split(second, 2**20), strict=True)
    return math.fsum(float(torch.dot(a, b)) for a, b in pairs)


def _check_finite(values: Tensor) -> None:
    if not bool(values.isfinite().all()):
        raise BadForecast("the forecast holds NaN or infinity, or overflows the dtype of the weights")


def _hold_norm(part: Tensor, last: Tensor) -> None:
    before, after = norm(last), norm(part)
    if before and after >= torch.finfo(torch.float32).tiny:  # by less, float32 cannot be divided
        part *= before / after


def _unmoved(states: Sequence[Tensor]) -> Tensor:
    unmoved = states[0] == states[-1]
    for state in states[1:-1]:
        unmoved &= states[0] == state
    return unmoved


def _bound(part: Tensor, moved: Tensor, *, gain: float, agreeing: tuple[float, float]) -> float:
    """Bring a displacement to its length, in place: `gain` times the movement seen, less the more it points elsewhere."""
    length, seen = norm(part), norm(moved)
    if not length or not seen:
        part.zero_()
        return 0.0
    part /= length  # so that no product overflows
    none_up_to, all_from = agreeing
    longest = gain * seen * min(1.0, max(0.0, (dot(part, moved) / seen - none_up_to) / (all_from - none_up_to)))
    part *= longest
    return longest


def _still_within(part: Tensor, moved: Tensor, *, longest: float) -> float:
    """By which to multiply a displacement whose norm was held: it may be longer now, or point away."""
    length = norm(part)
    return min(1.0, longest / length) if length and dot(part, moved) > 0 else 0.0
