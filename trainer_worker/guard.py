"""Every jump a trial: judged after a recovery window, undone exactly if it failed.

A good jump makes the loss worse at first, so it is not judged at once, unless it is hopeless: worse than an untrained network, or
not on its way back, by halves. After the recovery window the loss is compared with the run's own course: the losses before the
jump along `a step^b` with b <= 0, the shape of a training curve (`a + b log(step)` where losses are not all positive). A jump that
fell behind that course is undone only if the run is better off where it was: a rollback costs the window's steps, so a jump that
has lost less than those stays.

What trials cost is counted in the loss the run is heading for, where a step late in a run is worth little: steps that were undone,
and steps that accepted jumps are behind. Jumps that came out ahead make up for it.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from trainer_worker.errors import BadArgument
from trainer_worker.kept import KeptState, Stateful
from trainer_worker.probe import Gauge

LEVELS: Final = 6
"""Measurements before a jump that its course is drawn through, two each interval."""
CHECKS: Final = 8
"""Times the loss is taken in a recovery window. The average of its second half is judged."""
MEASUREMENTS: Final = 4
"""Of them in the second half; a window has at least as many steps."""
SLACK: Final = 0.1
"""How far above its course, relative to it, a jump that is halfway back may be in the last checks."""
SMALL: Final = 0.01
"""A difference in loss, relative to it, that is always worth a recovery window: less is lost in the noise of the measure."""
LONGEST_PAUSE: Final = 8
"""Periods without a nowcast after rejections in a row: 1, 2, 4, 8, 8, ..."""


@dataclass(frozen=True)
class Guard:
    """How jumps are tried.

    Rejected jumps undo at most `budget * max_steps` steps in all, or one recovery window if that is more. Rejections that cost
    steps are followed by pauses of 1, 2, 4, 8, 8, ... periods: a forecaster that never helps is asked ever more seldom.

    Args:
        recovery: steps after which a jump is judged; None for one interval.
        tolerance: how much worse, relatively, trials may make the loss the run is heading for. Once they have, no jump is tried; so
            the last one can exceed it by its own cost, a recovery window.
        budget: share of the run's steps that rejected jumps may undo.
        also: what else is to go back with the weights: learning-rate schedulers, `GradScaler`, samplers.
    """

    recovery: int | None = None
    tolerance: float = 0.0025
    budget: float = 0.05
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
    lost: float = 0.0  # of the loss the run is heading for, relative to it


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
        self._spacing = max(1, interval // 2)
        self._levels: list[tuple[int, float]] = []  # (step, loss) before the next jump
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

    @property
    def _spent(self) -> bool:
        record = self._record
        return record.cost_steps + self.recovery > self._limit_steps or record.lost > self._guard.tolerance

    def refusal(self, step: int) -> str:
        """Why there must be no jump at `step`; empty if there may be one."""
        if self._trial is not None:
            return "under_trial"
        if step + self.recovery > self._max_steps:
            return "no_time_to_recover"
        if self._record.pause:
            return "paused"
        if self._spent:
            return "budget_spent"
        if self._levels and not all(math.isfinite(loss) for _, loss in self._levels):
            return "no_loss"
        return ""

    def pass_period(self) -> None:
        """A period ended without a jump because of `refusal`."""
        self._record.pause = max(0, self._record.pause - 1)

    def begin(self, step: int, horizon: int) -> None:
        """Keep everything: a jump is about to be made."""
        self._kept.keep()
        self._trial = _Trial(step, horizon)

    def made(self) -> Verdict | None:
        """The jump has been made; a verdict at once if it is hopeless."""
        self._gauge.forget()
        return self._check(0) if self._gauge.immediate else None

    def after_step(self, step: int) -> Verdict | None:
        """Watch a step; the verdict on the jump under way when it is due."""
        if self._record.first is None and (self._gauge.immediate or step >= MEASUREMENTS):
            self._record.first = self._gauge.measure()
        trial = self._trial
        if trial is None:
            if step % self._spacing == 0 and not self._record.pause and not self._spent:
                self._levels = [*self._levels[1 - LEVELS :], (step, self._gauge.measure())]
            return None
        since = step - trial.step
        if since < self.recovery:
            return self._check(since) if since % max(1, self.recovery // CHECKS) == 0 else None
        return self._check(since) or self._weigh(trial, since)

    def _check(self, since: int) -> Verdict | None:
        """Measure, and give up what is hopeless."""
        trial = self._trial
        assert trial is not None
        loss, expected = self._gauge.measure(), self._expected(trial.step + since)
        if 2 * since > self.recovery:
            trial.total += loss
            trial.count += 1
        if loss <= self._hope(since, expected):  # false for NaN
            return None
        return self._judge(since, loss=loss, expected=expected, reason="hopeless")

    def _hope(self, since: int, expected: float) -> float:
        """The highest loss so many steps after a jump from which it may recover: an untrained network's at first, then, at each
        check, half as far from the course.
        """
        first = self._record.first
        if first is None or not math.isfinite(first):
            return math.inf
        checks = CHECKS * since / self.recovery
        if not self._gauge.immediate:
            checks = max(0.0, checks - CHECKS / 4)  # the losses of so long make one measurement
        return expected + max(max(first - expected, abs(expected)) / 2**checks, SLACK * abs(expected))

    def _weigh(self, trial: _Trial, since: int) -> Verdict:
        """At the end of the window: which is better, here or back there?"""
        loss, expected = trial.total / trial.count, self._expected(trial.step + round(0.75 * self.recovery))
        worth = max(self._expected(trial.step) - expected, SMALL * abs(expected))  # what a rollback gives up
        behind = (loss - expected) / worth if worth else 0.0
        if behind > 1:
            return self._judge(since, loss=loss, expected=expected, reason="not_recovered")
        self._lose(max(-1.0, behind) * self.recovery)
        return self._judge(since, loss=loss, expected=expected, reason="")

    def _lose(self, steps: float) -> None:
        """Count steps lost, negative ones gained, by what they are worth at the end of the run."""
        level = abs(self._expected(self._levels[-1][0])) if self._levels else 0.0
        each = (self._expected(self._max_steps - 1) - self._expected(self._max_steps)) / level if level else 0.0
        self._record.lost = max(0.0, self._record.lost + steps * each)

    def _expected(self, step: int) -> float:
        """The run's own course, at `step`: least squares of the levels, never upwards."""
        if not self._levels:
            return math.inf
        power = all(0 < loss < math.inf for _, loss in self._levels)
        xs = [math.log(at) for at, _ in self._levels]
        ys = [math.log(loss) if power else loss for _, loss in self._levels]
        x_mean, y_mean = sum(xs) / len(xs), sum(ys) / len(ys)
        spread = sum((x - x_mean) ** 2 for x in xs)
        slope = sum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys, strict=True)) / spread if spread else 0.0
        found = y_mean + min(0.0, slope) * (math.log(step) - x_mean)
        return math.exp(found) if power else found

    def _judge(self, since: int, *, loss: float, expected: float, reason: str) -> Verdict:
        assert self._trial is not None
        trial, record = self._trial, self._record
        self._trial = None
        if reason:
            self._kept.restore()
            self._lose(since)
            if since:
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
