"""Every jump a trial: judged after a recovery window, undone exactly if it failed.

A good jump makes the loss worse at first, far worse than an untrained network's for some steps, so it is not judged at once,
unless it is hopeless: absurdly bad, or not on its way back. After the recovery window the loss is compared with the run's own
course, the losses before the jump drawn on (`levels.py`). Both are losses of averaged weights (`gauge.py`),
as the losses of single ones scatter too far. A jump that is ahead of its course in the middle of the window, by default after an
interval, is not kept waiting; one that is behind has the rest of it. A jump that fell behind that course is undone only
if the run is better off where it was: a rollback costs the window's steps, so a jump that has lost less than those stays. And
it is undone only if that is no chance: the losses scatter by a percent or two still, and so does what is drawn through them.
How much is seen in the run's own losses; a jump that is behind by no more than that is given the benefit of the doubt.

What trials cost is counted in the loss the run is heading for, where a step late in a run is worth little: steps that were undone,
and what accepted jumps are behind beyond the scatter. Jumps that came out ahead beyond it make up for it, beforehand too.

Of several candidates (`contest.py`) the best is judged so, against the same course. What it takes to find it, the
windows of the others, the user has granted with the budget of steps; of a nowcast that is undone, at most one counts as loss.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from trainer_worker.errors import BadArgument
from trainer_worker.trials.contest import Contest, Trial
from trainer_worker.trials.gauge import Gauge
from trainer_worker.trials.kept import Stateful
from trainer_worker.trials.levels import COURSE, Levels

CHECKS: Final = 8
"""Times the loss is taken in a recovery window: of the steps since the last time, until the stretch begins by which a jump may
pass next; from then on of that, as far as it has come."""
SHORTEST: Final = 4
"""Steps in a recovery window, and in half of one."""
ABSURD: Final = 10
"""How many times as far above its course as an untrained network a jump may be at once. (Of nino-base's first jumps on FM-16, with
and without batch normalisation, one run each, which come out ahead of their course, it is 3.3 and 0.9.)"""
RETURN: Final = 2.5
"""By how much that falls from check to check."""
SLACK: Final = 0.1
"""How far above its course, relative to it, a jump that is on its way back may be at any check,"""
SCATTER: Final = 2
"""or how many standard errors, if that is more."""
SMALL: Final = 0.01
"""A difference in loss, relative to it, that is always worth a recovery window: less is lost in the noise of the measure."""
DOUBT: Final = 1.5
"""Standard errors by which a jump has to be worse than a rollback to be undone."""
LONGEST_PAUSE: Final = 8
"""Periods without a nowcast after rejections in a row: 1, 2, 4, 8, 8, ..."""


@dataclass(frozen=True)
class Guard:
    """How jumps are tried.

    Trials undo at most `budget * max_steps` steps in all, or one recovery window if that is more. Rejections that cost steps are
    followed by pauses of 1, 2, 4, 8, 8, ... periods: a forecaster that never helps is asked ever more seldom. It costs memory for
    weights, optimizer state and buffers, to go back to, and for an average of the weights, which takes a pass over them each step.

    A policy that names several horizons (`BestAfterRecovery`) has them tried one after the other: a nowcast with c candidates may
    undo c windows, c - 1 if the best of them stays. The same budget pays for that: raise it to have them compared. A candidate
    after the first is only tried if there is room left to undo its window as well, so a comparison whose best stays leaves enough
    for the next jump. Steps granted so are not held against `tolerance`, but for one window of each nowcast that is undone: with a
    forecaster that never helps, a run may end as far behind as they would have brought it.

    Args:
        recovery: steps that a jump has to recover in, though in a window of two intervals or more it may pass in the middle; None
            for two intervals, or one where contexts are short or a policy names several horizons (`recovery_steps`).
        tolerance: how much worse, relatively, trials may make the loss the run is heading for, beyond what jumps have gained.
            Once they have, no jump is tried; so the last one can exceed it by its own cost, a recovery window.
        budget: share of the run's steps that trials may undo.
        also: what else is to go back with the weights: learning-rate schedulers, `GradScaler`, samplers.
    """

    recovery: int | None = None
    tolerance: float = 0.0025
    budget: float = 0.08
    also: tuple[Stateful, ...] = ()

    def __post_init__(self) -> None:
        if self.recovery is not None and self.recovery < SHORTEST:
            raise BadArgument("guard", f"recovery must be at least {SHORTEST} steps, not {self.recovery}")
        for name in ("tolerance", "budget"):
            if not 0 <= getattr(self, name) <= 1:
                raise BadArgument("guard", f"{name} must be from 0 to 1, not {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a nowcast's jumps.

    Args:
        step: of the first jump.
        horizon: of the best, in intervals; of the last if all were hopeless.
        accepted: it stays; otherwise everything is as it was at `step`.
        expected: the loss the run was heading for.
        loss: the loss it has.
        cost_steps: steps that were undone: those of candidates that were not the best, and of the best if it was rejected.
        reason: of a rejection.
        went_back: the weights are not those of the step before: they were put back to before the jump, or to the end of an earlier
            candidate's window.
    """

    step: int
    horizon: int
    accepted: bool
    expected: float
    loss: float
    cost_steps: int
    reason: str
    went_back: bool


@dataclass
class _Record:
    """What trials remember from one nowcast to the next; plain values."""

    first: float | None = None  # the loss of the first steps
    rejections: int = 0  # in a row
    pause: int = 0  # periods still to sit out
    cost_steps: int = 0
    lost: float = 0.0  # of the loss the run is heading for, relative to it; negative where jumps gained


def recovery_steps(guard: Guard, *, interval: int, period: int, candidates: int = 1) -> int:
    """Steps that a jump has to recover in. By default two intervals: after one, some good jumps are not back yet (an MLP's, where
    norms stay). One where the next course would be left without its levels, in a short context, and for each of several
    candidates, as all but one of their windows are undone.
    """
    if guard.recovery is not None:
        return guard.recovery
    room = period // interval - COURSE
    return max(SHORTEST, interval * max(1, min(2, room // max(1, candidates))))


def stretch_steps(recovery: int, interval: int) -> int:
    """Steps that make one measurement: half of a recovery window, and no more than between two levels."""
    return max(1, min(interval, recovery) // 2)


class Trials:
    """Tries jumps. Alike on all ranks, as its measurements are.

    Args:
        guard: how.
        gauge: measures the loss.
        contest: keeps the states that may be gone back to.
        recovery: steps that a jump has to recover in.
        interval: steps between snapshots.
        max_steps: of the run.
    """

    def __init__(self, guard: Guard, *, gauge: Gauge, contest: Contest, recovery: int, interval: int, max_steps: int) -> None:
        self.recovery = recovery
        self._guard, self._gauge, self._contest = guard, gauge, contest
        self._max_steps = max_steps
        self._limit_steps = max(self.recovery, int(guard.budget * max_steps))
        self._interval, self._stretch = interval, stretch_steps(recovery, interval)
        self._apart = max(1, recovery // CHECKS)
        self._levels = Levels(gauge, interval=interval, stretch=self._stretch)
        self._record = _Record()
        self.candidate: int | None = None  # the horizon that is to be loaded now

    @property
    def _trial(self) -> Trial | None:
        return self._contest.trial

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
        return self._levels.no_way_ahead()

    def room(self, step: int) -> int:
        """How many recovery windows, one after the other, there is room for from `step` on in the run, and in the budget before the
        nowcast: so many candidates it may have.
        """
        return min(self._limit_steps - self._record.cost_steps, self._max_steps - step) // self.recovery

    def pass_period(self) -> None:
        """A period ended without a jump because of `refusal`."""
        self._record.pause = max(0, self._record.pause - 1)

    def begin(self, step: int, horizons: Sequence[int]) -> None:
        """Keep everything: a jump is about to be made, to the first of `horizons`, or the best of them in the end."""
        self._contest.begin(step, horizons)
        self.candidate = horizons[0]
        self._levels.note_scatter()

    def made(self, step: int) -> Verdict | None:
        """The jump to `candidate` has been made; a verdict at once if it is hopeless, and there is no other candidate."""
        self.candidate = None
        self._gauge.forget()
        return self._check(step) if self._gauge.immediate else None

    def after_step(self, step: int) -> Verdict | None:
        """Watch a step; the verdict when it is due. If everything went back for the next candidate, `candidate` says so."""
        if self._record.first is None and (self._gauge.immediate or not step % SHORTEST):
            first = self._gauge.measure()
            self._record.first = None if self._untold(first) else first
        trial = self._trial
        if trial is None:
            if not self._record.pause and not self._spent:
                self._levels.after_step(step)
            return None
        self._gauge.follow()
        since = step - trial.step
        if since < self.recovery and since % self._apart:
            if since == self._due(since) - self._stretch:
                self._gauge.forget()
            return None
        return self._check(step)

    def _due(self, since: int) -> int:
        """After how many steps a jump may pass next: in the middle of a window of two intervals or more, or at its end."""
        middle = self.recovery // 2 // self._apart * self._apart
        return middle if since <= middle and self.recovery >= 2 * max(self._interval, SHORTEST) else self.recovery

    def _check(self, step: int) -> Verdict | None:
        """Measure. A window ends after its time, or with all hope."""
        trial, course = self._trial, self._levels.course
        assert trial is not None
        trial.steps = since = step - trial.step
        trial.loss = loss = self._gauge.measure()
        due = self._due(since)
        if since == due or since <= due - self._stretch:
            self._gauge.forget()
        expected = course.at(self._contest.step + since)
        if since < self.recovery and self._untold(loss):
            return None
        hopeless = not loss <= self._hope(since, expected)  # true for NaN
        back = since == due and self._contest.alone and loss <= course.at(self._middle(trial))
        if since < self.recovery and not hopeless and not back:
            return None
        self._contest.end_window(hopeless=hopeless)
        if self._contest.waiting and self.room(step) > 0:  # forecasts may have come so late that time has run out
            self.candidate = self._contest.go_on(step)
            return None
        best = self._contest.best
        return self._weigh(best, step) if best else self._judge(trial, step, loss=loss, expected=expected, reason="hopeless")

    def _untold(self, loss: float) -> bool:
        """Whether there is no loss only because `observe` was told none lately: that says nothing about the jump."""
        return math.isnan(loss) and not self._gauge.immediate

    def _hope(self, since: int, expected: float) -> float:
        """The highest loss so many steps after a jump from which it may recover: an absurd one at once, then ever less far from the
        course, in the end as far as it may be by chance.
        """
        first, course = self._record.first, self._levels.course
        if first is None or not math.isfinite(first):
            return math.inf
        error = course.error(self._contest.step + since, variance=self._levels.variance)
        untrained = max(first - expected, abs(expected))
        absurd = untrained * ABSURD / math.pow(RETURN, CHECKS * since / self.recovery)
        return expected + max(absurd, SLACK * abs(expected), SCATTER * error)

    def _weigh(self, best: Trial, step: int) -> Verdict:
        """At the end of the windows: which is better, the best of them or back at the start?"""
        loss, course = best.loss, self._levels.course
        middle = self._middle(best)
        expected = course.at(middle)
        worth = max(course.at(self._contest.step) - expected, SMALL * abs(expected))  # what a rollback gives up
        chance = course.error(middle, variance=self._levels.variance)
        behind = loss - expected
        if behind > worth + DOUBT * chance:
            return self._judge(best, step, loss=loss, expected=expected, reason="not_recovered")
        # a lead at step t of a power law is at the end, at T, worth t / T of itself
        sure = behind - max(-chance, min(chance, behind))
        self._record.lost += sure / abs(expected) * middle / self._max_steps if expected else 0.0
        return self._judge(best, step, loss=loss, expected=expected, reason="")

    def _middle(self, trial: Trial) -> int:
        """Where the loss stands that a trial has in the end, counted from the start as if it had been the only one."""
        return self._levels.middle(self._contest.step + trial.steps)

    def _judge(self, trial: Trial, step: int, *, loss: float, expected: float, reason: str) -> Verdict:
        start, record = self._contest.step, self._record
        went_back = self._contest.finish(accepted=not reason)
        cost_steps = step - start - (0 if reason else trial.steps)
        record.cost_steps += cost_steps
        if reason:
            record.lost += self._levels.course.worth(min(cost_steps, self.recovery), end=self._max_steps)
            if cost_steps:
                record.rejections += 1
                record.pause = min(2 ** (record.rejections - 1), LONGEST_PAUSE)
        else:
            record.rejections = 0
        self._gauge.forget()
        self._levels.forget()
        return Verdict(start, trial.horizon, not reason, expected, loss, cost_steps, reason, went_back)

    def state_dict(self) -> dict[str, Any]:
        """Everything."""
        return {
            "record": asdict(self._record),
            "levels": self._levels.state_dict(),
            "contest": self._contest.state_dict(),
            "gauge": self._gauge.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self._contest.load_state_dict(state["contest"])
        self._record = _Record(**state["record"])
        self._levels.load_state_dict(state["levels"])
        self._gauge.load_state_dict(state["gauge"])
