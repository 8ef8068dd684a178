"""Every jump a trial: judged after a recovery window, undone exactly if it failed.

A good jump makes the loss worse at first, so it is never judged at once, unless it is hopeless. After the recovery window the
loss is compared with where the run was heading: its losses at the last snapshots before the jump, extrapolated along
`a + b log(step)` with b <= 0, the shape of a training curve. What a rejected jump costs is the window's steps.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from trainer_worker.errors import BadArgument
from trainer_worker.kept import KeptState, Stateful
from trainer_worker.probe import Gauge

TREND_LEVELS: Final = 3
"""Measurements before a jump that the trend is drawn through, one each interval."""
MEASUREMENTS: Final = 4
"""Times the loss is taken in the second half of a recovery window, for the average that is judged."""
HOPELESS: Final = 2.0
"""A loss so many times that of the first steps is not going to recover."""
LONGEST_PAUSE: Final = 8
"""Periods without a nowcast after rejections in a row: 1, 2, 4, 8, 8, ..."""


@dataclass(frozen=True)
class Guard:
    """How jumps are tried.

    Rejected jumps cost at most `budget * max_steps` steps in all, or one recovery window if that is more; rejections in a row
    are followed by pauses of 1, 2, 4, 8, 8, ... periods, so a forecaster that never helps costs no more than
    `recovery / period` of the steps in its first periods and less and less after that.

    Args:
        recovery: steps after which a jump is judged; None for one interval.
        tolerance: how far above the run's own course accepted jumps may bring the loss, relative to it, all together: what one
            jump takes is not there for the next, until a jump that did better has made up for it.
        budget: share of the run's steps that rejected jumps may cost.
        also: what else is to go back with the weights: learning-rate schedulers, `GradScaler`, samplers.
    """

    recovery: int | None = None
    tolerance: float = 0.02
    budget: float = 0.1
    also: tuple[Stateful, ...] = ()

    def __post_init__(self) -> None:
        if self.recovery is not None and self.recovery < MEASUREMENTS:
            raise BadArgument("guard", f"recovery must be at least {MEASUREMENTS} steps, not {self.recovery}")
        for name in ("tolerance", "budget"):
            if not 0 <= getattr(self, name) <= 1:
                raise BadArgument("guard", f"{name} must be from 0 to 1, not {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a jump.

    Args:
        step: of the jump.
        horizon: in intervals.
        accepted: the weights stay; otherwise everything is as it was at `step`.
        expected: the loss the run was heading for.
        loss: the loss it has.
        cost_steps: steps that were undone.
        reason: of a rejection.
    """

    step: int
    horizon: int
    accepted: bool
    expected: float
    loss: float
    cost_steps: int
    reason: str


@dataclass
class _Trial:
    step: int
    horizon: int
    total: float = 0.0  # of the measurements so far
    count: int = 0


@dataclass
class _Record:
    """What trials remember besides the kept state; plain values."""

    first: float | None = None  # the loss of the first steps
    rejections: int = 0  # in a row
    pause: int = 0  # periods still to sit out
    cost_steps: int = 0
    taken: float = 0.0  # of the tolerance


class Trials:
    """Tries jumps. Alike on all ranks, as its measurements are.

    Args:
        guard: how.
        gauge: measures the loss.
        kept: the state that goes back.
        interval: steps between snapshots.
        max_steps: of the run.
    """

    def __init__(self, guard: Guard, *, gauge: Gauge, kept: KeptState, interval: int, max_steps: int) -> None:
        self.recovery = guard.recovery if guard.recovery is not None else max(MEASUREMENTS, interval)
        self._guard, self._gauge, self._kept = guard, gauge, kept
        self._max_steps = max_steps
        self._limit_steps = max(self.recovery, int(guard.budget * max_steps))
        self._levels: list[tuple[int, float]] = []  # (step, loss) at the last snapshots
        self._trial: _Trial | None = None
        self._record = _Record()

    @property
    def under_way(self) -> bool:
        """A jump has been made and not been judged."""
        return self._trial is not None

    @property
    def cost_steps(self) -> int:
        """Steps that rejected jumps have cost so far."""
        return self._record.cost_steps

    def refusal(self, step: int) -> str:
        """Why there must be no jump at `step`; empty if there may be one."""
        if self._trial is not None:
            return "under_trial"
        if step + self.recovery > self._max_steps:
            return "no_time_to_recover"
        if self._record.pause:
            return "paused"
        if self._record.cost_steps + self.recovery > self._limit_steps:
            return "budget_spent"
        if self._levels and not all(math.isfinite(loss) for _, loss in self._levels):
            return "no_loss"
        return ""

    def pass_period(self) -> None:
        """A period ended without a jump because of `refusal`."""
        self._record.pause = max(0, self._record.pause - 1)

    def note_level(self, step: int) -> None:
        """Measure where the run is, at a snapshot."""
        if self._trial is None:
            self._levels = [*self._levels[1 - TREND_LEVELS :], (step, self._gauge.measure())]

    def begin(self, step: int, horizon: int) -> None:
        """Keep everything: a jump is about to be made."""
        self._kept.keep()
        self._trial = _Trial(step, horizon)

    def made(self) -> Verdict | None:
        """The jump has been made; a verdict at once if it is hopeless."""
        self._gauge.forget()
        return self._check_hope(0) if self._gauge.immediate else None

    def after_step(self, step: int) -> Verdict | None:
        """Watch a step; the verdict on the jump under way when it is due."""
        if self._record.first is None and (self._gauge.immediate or step >= MEASUREMENTS):
            self._record.first = self._gauge.measure()
        trial = self._trial
        if trial is None:
            return None
        since = step - trial.step
        if since == self.recovery // 8 and not self._gauge.immediate:
            return self._check_hope(since)
        if self._measures(since):
            trial.total += self._gauge.measure()
            trial.count += 1
            if not math.isfinite(trial.total):
                return self._judge(since, loss=trial.total, expected=self._expected(step), reason="loss_not_finite")
        if since < self.recovery:
            return None
        loss, expected = trial.total / trial.count, self._expected(trial.step + round(0.75 * self.recovery))
        taken = max(0.0, self._record.taken + (loss - expected) / max(abs(expected), 1e-12))
        if taken > self._guard.tolerance:
            return self._judge(since, loss=loss, expected=expected, reason="not_recovered")
        self._record.taken = taken
        return self._judge(since, loss=loss, expected=expected, reason="")

    def _measures(self, since: int) -> bool:
        """Whether the loss is taken so many steps after a jump: `MEASUREMENTS` times in the second half of the window."""
        spacing = max(1, self.recovery // (2 * MEASUREMENTS))
        return since > 0 and (self.recovery - since) % spacing == 0 and (self.recovery - since) // spacing < MEASUREMENTS

    def _check_hope(self, since: int) -> Verdict | None:
        assert self._trial is not None
        loss, expected = self._gauge.measure(), self._expected(self._trial.step)
        first = self._record.first
        limit = HOPELESS * max(abs(first), abs(expected)) if first is not None and math.isfinite(first) else math.inf
        if loss <= limit:  # false for NaN
            return None
        return self._judge(since, loss=loss, expected=expected, reason="hopeless")

    def _expected(self, step: int) -> float:
        """The run's own course, at `step`: least squares of the levels against log(step), never upwards."""
        xs = [math.log(at) for at, _ in self._levels]
        ys = [loss for _, loss in self._levels]
        if not xs:
            return math.inf
        x_mean, y_mean = sum(xs) / len(xs), sum(ys) / len(ys)
        spread = sum((x - x_mean) ** 2 for x in xs)
        slope = sum((x - x_mean) * y for x, y in zip(xs, ys, strict=True)) / spread if spread else 0.0
        return y_mean + min(0.0, slope) * (math.log(step) - x_mean)

    def _judge(self, since: int, *, loss: float, expected: float, reason: str) -> Verdict:
        assert self._trial is not None
        trial, record = self._trial, self._record
        self._trial = None
        if reason:
            self._kept.restore()
            record.rejections += 1
            record.pause = min(2 ** (record.rejections - 1), LONGEST_PAUSE)
            record.cost_steps += since
        else:
            record.rejections = 0
        self._gauge.forget()
        self._levels.clear()
        return Verdict(trial.step, trial.horizon, not reason, expected, loss, since if reason else 0, reason)

    def state_dict(self) -> dict[str, Any]:
        """Everything, the kept state only while a jump is under way."""
        return {
            "record": asdict(self._record),
            "levels": [list(level) for level in self._levels],
            "trial": asdict(self._trial) if self._trial else None,
            "kept": self._kept.state_dict() if self._trial else {},
            "gauge": self._gauge.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self._record = _Record(**state["record"])
        self._levels = [(step, loss) for step, loss in state["levels"]]
        self._trial = _Trial(**state["trial"]) if state["trial"] else None
        self._kept.load_state_dict(state["kept"])
        self._gauge.load_state_dict(state["gauge"])
