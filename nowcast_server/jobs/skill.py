"""Skill of a forecast, once the future has come: 1 - L1(forecast, truth) / L1(last, truth).

`last` has skill 0, a perfect forecast 1. The truth is the first snapshot at, or just after, the step a forecast speaks of: in a
gliding run with the pushes in it, in a shadow run what training alone did. Runs that jump make another future, and are not scored.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from nowcast_server.forecasters.simple import Average, Linear
from protos.messages import JobSpec

SAMPLE: Final = 16_384  # parameters that are judged by, drawn once; of a smaller network all are
KEPT: Final = 8  # forecasts that wait for their future. While all wait, further ones are not scored.
RIVALS: Final = (Linear(), Average())  # scored beside a job's own forecaster; they cost next to nothing

Scores = list[tuple[str, float]]  # forecasters and the skill of one forecast of theirs


def track_bytes(size: int) -> int:
    """Memory of a track record of a network of `size` parameters."""
    values = min(size, SAMPLE)
    return KEPT * (2 + len(RIVALS)) * 4 * values + (8 * values if values < size else 0)


@dataclass(eq=False)
class _Waiting:
    step: int  # of the nowcast
    horizon: int  # in intervals
    due: float  # the step it speaks of
    late: float  # a snapshot after this step does not show it
    last: Tensor  # (m,) float32
    forecasts: dict[str, Tensor]  # (m,) float32 each, by forecaster

    def judge(self, truth: Tensor) -> Scores:
        """Skill by forecaster; none if nothing moved, or a line left the range of float32."""
        unchanged = _error(self.last, truth)
        won = [(name, 1 - _error(each, truth) / unchanged) for name, each in self.forecasts.items() if unchanged]
        return [(name, value) for name, value in won if math.isfinite(value)]


class TrackRecord:
    """The forecasts of one job that wait for their future, and the skill of those whose future has come."""

    def __init__(self, spec: JobSpec) -> None:
        self._spec = spec
        self._sample = _sample(spec.wiring.size)
        self._waiting: list[_Waiting] = []
        self._means: dict[int, dict[str, tuple[float, int]]] = defaultdict(dict)  # the mean so far, and of how many

    def made(self, step: int, context: Sequence[Tensor], forecasts: Mapping[int, Tensor], *, interval: float) -> None:
        """A nowcast was made from the context, (n,) each, whose last state is of `step`; asked for again, it replaces itself.
        Forecasts are (n,) each, by horizon, and a horizon of 1 means `interval` steps.
        """
        self._waiting = [each for each in self._waiting if each.step < step <= each.late]
        if len(self._waiting) + len(forecasts) > KEPT:
            return  # the oldest forecasts are nearest to their future: none is dropped for a new one
        states = [self._of(state) for state in context]
        for horizon, forecast in sorted(forecasts.items()):
            rivals = {each.name: each.predict(self._spec.wiring, states, horizons=(horizon,))[0] for each in RIVALS}
            rows = {**rivals, self._spec.forecaster: self._of(forecast)}
            due = step + horizon * interval
            self._waiting.append(_Waiting(step, horizon, due - interval / 2, due + interval, states[-1].clone(), rows))

    def came(self, step: int, state: Tensor) -> Scores:
        """A snapshot (n,) came that was not there before; the skill of the forecasts that spoke of it."""
        due = [each for each in self._waiting if each.due <= step]
        if not due:
            return []
        self._waiting = [each for each in self._waiting if each.due > step]
        truth, scores = self._of(state), Scores()
        for each in due:
            for name, value in each.judge(truth) if step <= each.late else ():
                mean, count = self._means[each.horizon].get(name, (0.0, 0))
                self._means[each.horizon][name] = (mean + (value - mean) / (count + 1), count + 1)
                scores.append((name, value))
        return scores

    def skill(self) -> dict[str, dict[str, float]]:
        """Mean skill so far by horizon, then forecaster."""
        return {str(horizon): {name: mean for name, (mean, _) in means.items()} for horizon, means in sorted(self._means.items())}

    def forget(self) -> None:
        """Let go of the forecasts that wait; what was judged stays."""
        self._waiting.clear()

    def _of(self, values: Tensor) -> Tensor:
        """What is judged by: (m,) float32, copied."""
        return (values if self._sample is None else values[self._sample]).to(torch.float32, copy=True)


def _error(forecast: Tensor, truth: Tensor) -> float:
    return float((forecast - truth).abs().sum(dtype=torch.float64))


def _sample(size: int) -> Tensor | None:
    """One parameter of each of `SAMPLE` equal stretches, at random so that rows and channels come evenly; None for all."""
    if size <= SAMPLE:
        return None
    places = torch.rand(SAMPLE, dtype=torch.float64, device="cpu", generator=torch.Generator().manual_seed(0))
    return ((torch.arange(SAMPLE, device="cpu") + places) * (size / SAMPLE)).long().clamp(max=size - 1)
