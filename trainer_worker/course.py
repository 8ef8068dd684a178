"""What happens after each optimizer step: snapshots, requests, jumps, verdicts."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from torch import Tensor, nn

from protos.errors import NowcastError
from protos.messages import Outcome
from trainer_worker.average import RunningAverage
from trainer_worker.context import Context
from trainer_worker.distributed import Decision, Ranks
from trainer_worker.errors import reason_for
from trainer_worker.events import Event, Journal
from trainer_worker.flat import FlatParameters
from trainer_worker.guard import Trials, Verdict
from trainer_worker.jump import Landing
from trainer_worker.rates import Rates
from trainer_worker.schedule import Learner, Policy
from trainer_worker.sender import Request

log = logging.getLogger(__name__)

Mode = Literal["blocking", "overlap", "shadow"]
WAITING: Final = "waiting"


@dataclass
class _Pending:
    """A nowcast that training does not wait for; `request` is made anew after a resume, and on rank 0 alone."""

    step: int
    horizons: tuple[int, ...]
    request: Request | None = None


class Course:
    """One run's way from snapshot to jump. The same on every rank, but that rank 0 alone has a `context`.

    Args:
        parameters: what jumps.
        context: takes snapshots and fetches forecasts; None on other ranks.
        ranks: that jump together.
        policy: how far.
        rates: shorten that under a falling learning rate.
        landing: makes the jumps.
        trials: tries jumps; None to accept every one.
        journal: hears of everything.
        interval: steps between snapshots.
        period: steps between nowcasts.
        mode: whether training waits for forecasts, goes on meanwhile, or never loads them.
        quiet: steps before a snapshot that are averaged for it; 0 for none.
    """

    def __init__(
        self,
        *,
        parameters: FlatParameters,
        context: Context | None,
        ranks: Ranks,
        policy: Policy,
        rates: Rates,
        landing: Landing,
        trials: Trials | None,
        journal: Journal,
        interval: int,
        period: int,
        mode: Mode,
        quiet: int = 0,
    ) -> None:
        self._parameters, self._context, self._ranks = parameters, context, ranks
        self._policy, self._rates, self._landing = policy, rates, landing
        self._learner = policy if isinstance(policy, Learner) else None
        self._trials, self._journal = trials, journal
        self._interval, self._period, self._mode = interval, period, mode
        self._quiet = quiet
        averages = quiet and (context is not None or parameters.sharded)
        self._average = RunningAverage(list(parameters.moving)) if averages else None
        # Added to the noisy weights, a quiet forecast's displacement leaves their noise as it is.
        self._late = mode == "overlap" or quiet > 0
        self._origin = 0  # the step after which the present context begins
        self._pending: _Pending | None = None
        self._waited_s = 0.0  # for the jump under trial
        self._asked_at = 0  # step of the nowcast under trial
        self._compared = False
        self.step = 0

    def after_step(self) -> None:
        """Count a step and do what is due. Raises only what the ranks' own communication raises, and `RanksDiffer`."""
        self.step += 1
        if not self._compared:
            self._compare()
        self.hear_news()
        if self._trials is not None:
            self._settle(self._trials.after_step(self.step))
        if self._pending is not None and self._due(self._pending):
            self._take_up(self._pending)
        steps = self.step - self._origin
        if self._average is not None and steps and -steps % self._interval < self._quiet:
            self._average.add()
        if steps and steps % self._interval == 0 and self._wanted():
            self._take_snapshot()
        if steps == self._period:
            self._end_period()

    def _wanted(self) -> bool:
        """Whether a snapshot is of use: for the next nowcast, or as the future of one that is only scored."""
        return self._mode == "shadow" or bool(self._policy.horizons(self._origin + self._period))

    def hear_news(self) -> None:
        """Note the server's comings and goings."""
        if self._context is None:
            return
        for outcome, error in self._context.news():
            reason, detail = (reason_for(error), str(error)) if error is not None else ("", "")
            self._journal.add(Event(self.step, "server", outcome, reason=reason, detail=detail))

    def _compare(self) -> None:
        facts = {"step": self.step, "origin": self._origin, "interval": self._interval, "period": self._period, "mode": self._mode}
        self._ranks.check_alike(facts, () if self._parameters.sharded else self._parameters.moving)
        self._rates.begin(self.step)
        self._compared = True

    def _take_snapshot(self) -> None:
        self._rates.note()
        means = self._average.means if self._average is not None else {}
        if self._context is not None:
            self._take_down(self._context, means)
        elif self._parameters.sharded:
            self._parameters.copy_to(None, means=means)
        self._forget_average()

    def _take_down(self, context: Context, means: Mapping[nn.Parameter, Tensor]) -> None:
        try:
            taken = context.snapshot(self.step, means=means)
        except Exception as error:
            log.exception("a snapshot could not be taken")
            self._journal.add(Event(self.step, "snapshot", "dropped", reason=reason_for(error), detail=str(error)))
            return
        self._journal.tally.snapshots += taken
        if not taken:
            detail = "earlier snapshots are still on their way"
            self._journal.add(Event(self.step, "snapshot", "dropped", reason="sender_behind", detail=detail))

    def _end_period(self) -> None:
        """Ask and jump, or have the forecasts made meanwhile; the next context begins."""
        horizons = self._policy.horizons(self.step)
        self._origin = self.step
        refusal = self._trials.refusal(self.step) if self._trials is not None and self._mode != "shadow" else ""
        if horizons and not refusal:
            shortened = self._rates.shorten(horizons, step=self.step)
            horizons, refusal = shortened or horizons, "" if shortened else "rate_spent"
        if not horizons or refusal:
            if self._trials is not None:
                self._trials.pass_period()
            self._next_context()
            if horizons:
                self._journal.add(Event(self.step, "nowcast", "skipped", reason=refusal))
            return
        self._pending = _Pending(self.step, horizons)
        self._ask(self._pending)
        if self._mode == "blocking":
            self._take_up(self._pending)

    def _ask(self, pending: _Pending) -> None:
        if self._context is not None:
            pending.request = self._context.ask(pending.step, pending.horizons)

    def _due(self, pending: _Pending) -> bool:
        """Whether to look for the answer. One process looks after every step; ranks, who have to look together, after 1, 2, 4,
        8, ... steps. The last look is one step before the next snapshot.
        """
        if self._context is not None and pending.request is None:
            self._ask(pending)  # resumed
        since = self.step - pending.step
        return self._ranks.world == 1 or since & (since - 1) == 0 or since >= self._interval - 1

    def _take_up(self, pending: _Pending) -> None:
        """Load what was asked for, skip it, or keep waiting."""
        start = time.perf_counter()
        last_look = self._mode == "blocking" or self.step - pending.step >= self._interval - 1
        decision, target, detail = self._decide(pending, last_look=last_look)
        size = None if self._parameters.sharded else self._parameters.size
        decision, target = self._ranks.share(decision, target, size=size)
        if decision.reason == WAITING:
            return
        self._pending = None
        self._next_context()
        if decision.horizon is not None:
            self._jump(decision.horizon, target, pending, start)
            return
        seconds = time.perf_counter() - start
        event = Event(pending.step, "nowcast", "skipped", None, decision.reason, detail, seconds)
        self._journal.add(event)
        self._report(Outcome(step=pending.step, outcome="skipped", reason=decision.reason))

    def _decide(self, pending: _Pending, *, last_look: bool) -> tuple[Decision | None, Tensor | None, str]:
        """On rank 0: the decision, the weights to load if it is to jump, and why not in a sentence."""
        if self._context is None or pending.request is None:
            return None, None, ""
        if not last_look and not pending.request.done.is_set():
            return Decision(None, WAITING), None, ""
        try:
            forecasts = self._context.collect(pending.request, wait=self._mode == "blocking")
            horizon = self._policy.choose(pending.step, pending.horizons)
            if self._mode == "shadow":
                return Decision(None, "shadow"), None, f"horizon {horizon} was not loaded"
            target = forecasts[pending.horizons.index(horizon)]
            first, last = self._context.ends()
            self._landing.soften(target, first=first, last=last)
            self._parameters.displace(target, last=last, late=self._late)
        except Exception as error:
            if not isinstance(error, NowcastError):
                log.exception("the nowcast failed")
            return Decision(None, reason_for(error)), None, str(error)
        return Decision(horizon), target, ""

    def _jump(self, horizon: int, target: Tensor | None, pending: _Pending, start: float) -> None:
        if self._trials is not None:
            self._trials.begin(self.step, horizon)
        self._landing.make(target, late=self._late)
        self._forget_average()
        self._waited_s, self._asked_at = time.perf_counter() - start, pending.step
        if self._trials is not None:
            self._settle(self._trials.made())
            return
        self._journal.add(Event(pending.step, "nowcast", "accepted", horizon, seconds=self._waited_s))
        self._report(Outcome(step=pending.step, horizon=horizon, outcome="accepted"))

    def _settle(self, verdict: Verdict | None) -> None:
        """Act on a verdict; the trials have undone a rejected jump already."""
        if verdict is None:
            return
        if not verdict.accepted:  # what was seen since the jump is not this run's course
            self._origin = self.step
            self._next_context()
            self._forget_average()
        if self._learner is not None:
            self._learner.learn(accepted=verdict.accepted)
        outcome: Literal["accepted", "rejected"] = "accepted" if verdict.accepted else "rejected"
        self._journal.add(
            Event(
                self._asked_at,
                "nowcast",
                outcome,
                verdict.horizon,
                verdict.reason,
                seconds=self._waited_s,
                expected_loss=verdict.expected,
                loss=verdict.loss,
                cost_steps=verdict.cost_steps,
            )
        )
        self._report(
            Outcome(
                step=self._asked_at,
                horizon=verdict.horizon,
                outcome=outcome,
                reason=verdict.reason,
                loss_before=_finite(verdict.expected),
                loss_after=_finite(verdict.loss),
                cost_steps=verdict.cost_steps,
            )
        )

    def _forget_average(self) -> None:
        if self._average is not None:
            self._average.forget()

    def _next_context(self) -> None:
        self._rates.forget()
        if self._context is not None:
            self._context.reset()

    def _report(self, outcome: Outcome) -> None:
        if self._context is not None:
            self._context.report(outcome)

    def state_dict(self) -> dict[str, Any]:
        """Everything, as plain values and tensors."""
        pending = self._pending
        return {
            "step": self.step,
            "origin": self._origin,
            "interval": self._interval,
            "period": self._period,
            "quiet": self._quiet,
            "pending": [pending.step, list(pending.horizons)] if pending else None,
            "waited_s": self._waited_s,
            "asked_at": self._asked_at,
            "context": self._context.state_dict() if self._context else {},
            "trials": self._trials.state_dict() if self._trials else None,
            "policy": self._learner.state_dict() if self._learner is not None else {},
            "rates": self._rates.state_dict(),
            "average": self._average.state_dict() if self._average else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()` of a run with the same interval, period, averages, and kind of policy and trial."""
        if self._context is not None:
            self._context.load_state_dict(state["context"])
        if self._trials is not None:
            self._trials.load_state_dict(state["trials"])
        if self._learner is not None:
            self._learner.load_state_dict(state["policy"])
        self._rates.load_state_dict(state["rates"])
        if self._average is not None:
            self._average.load_state_dict(state["average"])
        self.step, self._origin = state["step"], state["origin"]
        self._waited_s, self._asked_at = state["waited_s"], state["asked_at"]
        self._pending = _Pending(state["pending"][0], tuple(state["pending"][1])) if state["pending"] else None
        self._compared = False


def _finite(loss: float) -> float | None:
    return loss if abs(loss) < float("inf") else None
