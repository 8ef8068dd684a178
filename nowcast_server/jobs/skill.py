"""Skill: how much less a forecast errs than the claim that nothing changes, once the future it speaks of has come.

    skill = 1 - L1(forecast, truth) / L1(last, truth)

`last` has skill 0, a perfect forecast 1. The truth is the snapshot of the forecast's step, if no jump was made on the way.
"""

import math
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from nowcast_server.forecasters.average import Average
from nowcast_server.forecasters.linear import Linear
from protos.messages import JobSpec, Outcome

SAMPLE: Final = 16_384
"""Parameters that are judged by, drawn once; of a smaller network all are."""
KEPT: Final = 8
"""Forecasts that wait for their future. With five snapshots a context and one horizon each, the eighth nowcast reaches 40."""
RIVALS: Final = (Linear(), Average())
"""Scored beside a job's own forecaster; they cost next to nothing."""

Scores = list[tuple[str, float]]
"""Forecasters and the skill of one forecast of theirs."""


def track_bytes(size: int) -> int:
    """Memory of a track record of a network of `size` parameters."""
    values = min(size, SAMPLE)
    return KEPT * (2 + len(RIVALS)) * 4 * values + (8 * values if values < size else 0)


@dataclass(eq=False)
class _Waiting:
    """One nowcast's forecasts for one horizon.

    Args:
        step: of the nowcast.
        horizon: in intervals.
        due: step of the snapshot that shows the truth.
        last: (m,) float32.
        forecasts: (m,) float32 each, by forecaster.
    """

    step: int
    horizon: int
    due: int
    last: Tensor
    forecasts: dict[str, Tensor]

    def judge(self, truth: Tensor) -> Scores:
        """Skill by forecaster; none if nothing moved, or a line left the range of float32."""
        unchanged = _error(self.last, truth)
        won = [(name, 1 - _error(each, truth) / unchanged) for name, each in self.forecasts.items() if unchanged]
        return [(name, value) for name, value in won if math.isfinite(value)]


@dataclass
class _Mean:
    total: float = 0.0
    count: int = 0


class TrackRecord:
    """The forecasts of one job that wait for their future, and the skill of those whose future has come.

    Between a nowcast and its outcome nobody knows whether the snapshots that come are this run's future, so what they say counts
    only once the nowcast was `skipped`. An `accepted` jump makes another future: whatever waits is dropped. It is dropped as well
    if the next nowcast comes and no outcome was told. After a `rejected` jump the run goes on from where it was, steps later.

    Args:
        spec: of the job.
    """

    def __init__(self, spec: JobSpec) -> None:
        self._spec = spec
        self._sample = _sample(spec.wiring.size)
        self._waiting: deque[_Waiting] = deque(maxlen=KEPT)
        self._open: int | None = None  # step of the nowcast whose outcome is not known
        self._told: int | None = None  # step of the last outcome
        self._unsure: list[tuple[_Waiting, Scores]] = []
        self._means: dict[int, dict[str, _Mean]] = defaultdict(lambda: defaultdict(_Mean))

    def made(self, step: int, context: Sequence[Tensor], forecasts: Mapping[int, Tensor]) -> None:
        """A nowcast was made; asked for again, it replaces itself.

        Args:
            step: of the last state.
            context: the states it was made from, (n,) each.
            forecasts: (n,) each, by horizon.
        """
        if self._open not in (None, step):
            self._drop()
        self._open = None if step == self._told else step
        kept = [each for each in self._waiting if each.step < step < each.due]  # the truth of the others never came
        self._waiting = deque(kept, maxlen=KEPT)
        states = [self._of(state) for state in context]
        for horizon, forecast in sorted(forecasts.items(), reverse=True):  # the nearest is dropped last
            rivals = {each.name: each.predict(self._spec.wiring, states, horizons=(horizon,), node_pe=None)[0] for each in RIVALS}
            rows = {**rivals, self._spec.forecaster: self._of(forecast)}
            self._waiting.append(_Waiting(step, horizon, step + horizon * self._spec.interval, states[-1].clone(), rows))

    def came(self, step: int, state: Tensor) -> Scores:
        """A snapshot (n,) came that was not there before; the scores that are sure now."""
        due = [each for each in self._waiting if each.due == step]
        if not due:
            return []
        truth = self._of(state)
        judged = [(each, each.judge(truth)) for each in due]
        if self._open is not None and step > self._open:
            self._unsure += judged
            return []
        return self._count(judged)

    def told(self, outcome: Outcome) -> Scores:
        """The outcome of a nowcast was told; the scores that are sure now."""
        self._told = outcome.step
        if outcome.step != self._open:
            return []
        judged, self._unsure, self._open = self._unsure, [], None
        if outcome.outcome == "skipped":
            return self._count(judged)
        if outcome.outcome == "accepted":
            self._drop()
        for each in self._waiting:
            each.due += outcome.cost_steps
        return []

    def skill(self) -> dict[str, dict[str, float]]:
        """Mean skill so far by horizon, then forecaster."""
        return {
            str(horizon): {name: mean.total / mean.count for name, mean in means.items()}
            for horizon, means in sorted(self._means.items())
        }

    def _of(self, values: Tensor) -> Tensor:
        """What is judged by: (m,) float32, copied."""
        return (values if self._sample is None else values[self._sample]).to(torch.float32, copy=True)

    def _drop(self) -> None:
        self._waiting.clear()
        self._unsure.clear()

    def _count(self, judged: list[tuple[_Waiting, Scores]]) -> Scores:
        scores = []
        for waiting, won in judged:
            if waiting not in self._waiting:
                continue
            self._waiting.remove(waiting)
            for name, value in won:
                mean = self._means[waiting.horizon][name]
                mean.total, mean.count = mean.total + value, mean.count + 1
            scores += won
        return scores


def _error(forecast: Tensor, truth: Tensor) -> float:
    return float((forecast - truth).abs().sum(dtype=torch.float64))


def _sample(size: int) -> Tensor | None:
    """One parameter of each of `SAMPLE` equal stretches, at random so that rows and channels come evenly; None for all."""
    if size <= SAMPLE:
        return None
    places = torch.rand(SAMPLE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return ((torch.arange(SAMPLE) + places) * (size / SAMPLE)).long().clamp(max=size - 1)
