"""What happens after each optimizer step: snapshots, requests, jumps, verdicts."""

import logging
import time
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from trainer_worker.candidates import WAITING, Candidates, Mode, Pending
from trainer_worker.context import Context
from trainer_worker.errors import BadArgument, reason_for
from trainer_worker.events import Event, Journal
from trainer_worker.jump import Landing
from trainer_worker.rates import Rates
from trainer_worker.schedule import Learner, Policy
from trainer_worker.trials.guard import Trials, Verdict
from trainer_worker.weights.average import RunningAverage
from trainer_worker.weights.distributed import Ranks
from trainer_worker.weights.flat import FlatParameters

log = logging.getLogger(__name__)


class Cycle:
    """One run's cycles, each from snapshots to a jump. The same on every rank, but that rank 0 alone has a `context`.

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
        max_steps: of the run; on the last one and after it there is no nowcast.
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
        max_steps: int,
        mode: Mode,
        quiet: int = 0,
    ) -> None:
        self._parameters, self._context, self._ranks = parameters, context, ranks
        self._policy, self._rates = policy, rates
        self._learner = policy if isinstance(policy, Learner) else None
        self._trials, self._journal = trials, journal
        self._interval, self._period, self._max_steps, self._mode = interval, period, max_steps, mode
        self._quiet = quiet
        averages = quiet and (context is not None or parameters.sharded)
        self._average = RunningAverage(list(parameters.trained)) if averages else None
        # Added to the noisy weights, a quiet forecast's displacement leaves their noise as it is.
        late = mode == "overlap" or quiet > 0
        self._candidates = Candidates(context, parameters, ranks=ranks, landing=landing, interval=interval, mode=mode, late=late)
        self._origin = 0  # the step after which the present context begins
        self._waited_s = 0.0  # for the nowcast under trial
        self._asked_at = 0  # its step
        self._compared = False
        self.step = 0

    def after_step(self) -> None:
        """Count a step and do what is due. Raises only what the ranks' own communication raises, and `RanksDiffer`."""
        self.step += 1
        if not self._compared:
            self._compare()
        self.hear_news()
        if self._trials is not None:
            self._watch(self._trials)
        if pending := self._candidates.due(self.step):
            self._take_up(pending)
        steps = self.step - self._origin
        if self._average is not None and steps and -steps % self._interval < self._quiet:
            self._average.add()
        if steps and steps % self._interval == 0 and self._wanted():
            self._take_snapshot()
        if steps == self._period:
            self._end_period()

    def _wanted(self) -> bool:
        """Whether a snapshot is of use: for the next nowcast, or as the future of one that is only scored."""
        return self._mode == "shadow" or bool(self._horizons(self._origin + self._period))

    def _horizons(self, step: int) -> tuple[int, ...]:
        """What the policy says, while steps remain to repair what a jump breaks at first."""
        return self._policy.horizons(step) if step < self._max_steps else ()

    def hear_news(self) -> None:
        """Note the server's comings and goings."""
        if self._context is None:
            return
        for outcome, error in self._context.news():
            reason, detail = (reason_for(error), str(error)) if error is not None else ("", "")
            self._journal.add(Event(self.step, "server", outcome, reason=reason, detail=detail))

    def _compare(self) -> None:
        facts = {"step": self.step, "origin": self._origin, "interval": self._interval, "period": self._period, "mode": self._mode}
        self._ranks.check_alike(facts, () if self._parameters.sharded else self._parameters.trained)
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

    def _take_down(self, context: Context, means: Mapping[Tensor, Tensor]) -> None:
        try:
            context.snapshot(self.step, means=means)
        except Exception as error:
            log.exception("a snapshot could not be taken")
            self._journal.add(Event(self.step, "snapshot", "dropped", reason=reason_for(error), detail=str(error)))
        else:
            self._journal.tally.snapshots += 1

    def _end_period(self) -> None:
        """Ask and jump, or have the forecasts made meanwhile; the next context begins."""
        horizons = self._horizons(self.step)
        self._origin = self.step
        refusal = self._trials.refusal(self.step) if self._trials is not None and self._mode != "shadow" else ""
        if horizons and not refusal:
            shortened = self._affordable(self._rates.shorten(horizons, step=self.step))
            horizons, refusal = shortened or horizons, "" if shortened else "rate_spent"
        if not horizons or refusal:
            if self._trials is not None:
                self._trials.pass_period()
            self._next_context()
            if horizons:
                self._journal.add(Event(self.step, "nowcast", "skipped", reason=refusal))
            return
        pending = self._candidates.ask(self.step, horizons)
        if self._mode == "blocking":
            self._take_up(pending)

    def _affordable(self, horizons: tuple[int, ...]) -> tuple[int, ...]:
        """Those that are of use: in shadow all, untried the first, else as many as there is room to try one after the other."""
        if self._mode == "shadow":
            return horizons
        if self._trials is None:
            return horizons[:1]
        return tuple(dict.fromkeys(horizons))[: self._trials.room(self.step)]

    def _take_up(self, pending: Pending) -> None:
        """Load what was asked for, skip it, or keep waiting."""
        start = time.perf_counter()
        refusal, detail = self._candidates.collect(pending, self.step)
        if refusal == WAITING:
            return
        self._next_context()
        self._waited_s, self._asked_at = time.perf_counter() - start, pending.step
        refusal = refusal or self._too_late()
        if not refusal:
            self._jump(pending.horizons)
            return
        self._candidates.drop()
        self._tell(Event(pending.step, "nowcast", "skipped", None, refusal, detail, self._waited_s))

    def _too_late(self) -> str:
        """Why forecasts are not loaded though they have come: the run went on meanwhile. Empty if they are."""
        if self.step >= self._max_steps:
            return "no_time_to_recover"
        return self._trials.refusal(self.step) if self._trials is not None else ""

    def _jump(self, horizons: tuple[int, ...]) -> None:
        if self._trials is not None:
            self._trials.begin(self.step, horizons)
            self._settle(self._try(self._trials))
            return
        self._load(horizons[0])
        self._candidates.drop()
        self._tell(Event(self._asked_at, "nowcast", "accepted", horizons[0], seconds=self._waited_s))

    def _load(self, horizon: int) -> None:
        start = time.perf_counter()
        self._candidates.load(horizon)
        self._forget_average()
        self._waited_s += time.perf_counter() - start

    def _try(self, trials: Trials) -> Verdict | None:
        """Load the candidate whose turn it is; the next as well if it is hopeless at once."""
        verdict = None
        while trials.candidate is not None:
            self._load(trials.candidate)
            verdict = trials.made(self.step)
        return verdict

    def _watch(self, trials: Trials) -> None:
        """See to the trials after a step."""
        verdict = trials.after_step(self.step)
        if trials.candidate is not None:
            self._start_over()
            verdict = self._try(trials)
        self._settle(verdict)

    def _start_over(self) -> None:
        """The weights were put back: what was seen since the jump is not this run's course."""
        self._origin = self.step
        self._next_context()
        self._forget_average()

    def _settle(self, verdict: Verdict | None) -> None:
        """Act on a verdict; the trials have put back already what it takes."""
        if verdict is None:
            return
        self._candidates.drop()
        if verdict.went_back:
            self._start_over()
        if self._learner is not None:
            self._learner.learn(accepted=verdict.accepted)
        event = Event(
            self._asked_at,
            "nowcast",
            "accepted" if verdict.accepted else "rejected",
            verdict.horizon,
            verdict.reason,
            seconds=self._waited_s,
            expected_loss=verdict.expected,
            loss=verdict.loss,
            cost_steps=verdict.cost_steps,
        )
        self._tell(event)

    def _forget_average(self) -> None:
        if self._average is not None:
            self._average.forget()

    def _next_context(self) -> None:
        self._rates.forget()
        if self._context is not None:
            self._context.reset()

    def _tell(self, event: Event) -> None:
        """What became of a nowcast, to journal and server."""
        self._journal.add(event)
        if self._context is not None:
            self._context.report(event)

    @property
    def _learns(self) -> str:
        """The kind of a policy that learns; empty for one that does not."""
        return type(self._learner).__name__ if self._learner is not None else ""

    def state_dict(self) -> dict[str, Any]:
        """Everything, as plain values and tensors."""
        return {
            "step": self.step,
            "origin": self._origin,
            "interval": self._interval,
            "period": self._period,
            "quiet": self._quiet,
            "waited_s": self._waited_s,
            "asked_at": self._asked_at,
            "context": self._context.state_dict() if self._context else {},
            "candidates": self._candidates.state_dict(),
            "trials": self._trials.state_dict() if self._trials else None,
            "policy": {"kind": self._learns, "learnt": self._learner.state_dict() if self._learner is not None else {}},
            "rates": self._rates.state_dict(),
            "average": self._average.state_dict() if self._average else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()` of a run with the same interval, period, averages and kind of trial.

        Raises:
            BadArgument: its policy learnt in another way, or it was saved in a trial that keeps other things; nothing is loaded.
        """
        if (kind := state["policy"]["kind"]) != self._learns:
            raise BadArgument("state", f"of a run whose policy learns as {kind or 'none'}, this one's as {self._learns or 'none'}")
        if self._trials is not None:
            self._trials.load_state_dict(state["trials"])
        if self._context is not None:
            self._context.load_state_dict(state["context"])
        self._candidates.load_state_dict(state["candidates"])
        if self._learner is not None:
            self._learner.load_state_dict(state["policy"]["learnt"])
        self._rates.load_state_dict(state["rates"])
        if self._average is not None:
            self._average.load_state_dict(state["average"])
        self.step, self._origin = state["step"], state["origin"]
        self._waited_s, self._asked_at = state["waited_s"], state["asked_at"]
        self._compared = False
        if self._mode == "blocking" and self._candidates.pending is not None:  # of a run that trained on: too late for this one
            self._candidates.pending = None
            self._next_context()
