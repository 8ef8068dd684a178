"""After each optimizer step: add a part of the push; at the end of an interval, make one decision."""

import logging
import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from torch import Tensor

from protos.errors import NowcastError
from protos.messages import Mode, Progress
from trainer_worker.endpoints.sender import Request
from trainer_worker.errors import reason_for
from trainer_worker.events import Event, Journal
from trainer_worker.forecasts import Forecasts, Tell
from trainer_worker.push import CONTEXT, Push
from trainer_worker.snapshots import NoRow
from trainer_worker.weights.distributed import Ranks
from trainer_worker.weights.flat import FlatParameters
from trainer_worker.weights.pushed import PushedWeights

log = logging.getLogger(__name__)

SHARE: Final = 200  # intervals in a run whose length is known
GROWTH: Final = 150  # of a run of unknown length, an interval is one part in so many of the steps so far
SHORTEST: Final = 8  # steps; in fewer, Adam's own momentum and noise are much of what moves
EVERY: Final = 4  # steps between the equal parts of a push: each is a pass over the weights, and fewer cost less and save as much
LATE: Final = 3  # so many late forecasts, with none in time between them, double the interval;
IN_TIME: Final = 10  # so many in time, times 2 for each time it was doubled, halve it again
WIDEST: Final = 16  # times it may grow to: what is that far apart says little about the next steps


def default_interval(max_steps: int) -> int:
    """Steps between the snapshots of a run of known length."""
    return max(SHORTEST, max_steps // SHARE)


class Boundaries:
    """Counts the steps of a run, and decides at the end of each interval. The same on every rank, but that rank 0 alone has
    `forecasts`. In the mode `shadow` they are made and scored, never used. At a boundary it (1) takes up what was asked for at the
    boundary before, if it has come, else goes without; (2) takes a snapshot and asks for a forecast from the newest ones. What a
    run does depends on which forecasts came by their boundary, not on when. Where they keep coming late, the interval doubles.
    """

    def __init__(
        self,
        flat: FlatParameters,
        *,
        pushed: PushedWeights,
        forecasts: Forecasts | None,
        ranks: Ranks,
        push: Push,
        journal: Journal,
        max_steps: int | None,
        interval: int | None,
        mode: Mode,
    ) -> None:
        self._flat, self.pushed, self._forecasts, self._ranks = flat, pushed, forecasts, ranks
        self._push, self._journal, self._max_steps, self._mode = push, journal, max_steps, mode
        self._shadow = mode == "shadow"
        self._interval = interval or (default_interval(max_steps) if max_steps else None)
        self.stretch = 1  # by how much the interval has grown
        self._patience = IN_TIME
        self._trend = 0  # late forecasts, with none in time between them; if negative, in time, with none late
        self._next = self.interval_after(0)
        self._taken = 0  # snapshots of the present context that were due
        self._asked: Request | None = None
        self._asking = False  # whether there is a request under way, known to all ranks
        self._gain = 0.0  # of the push under way
        self._losses: Tensor | float = 0.0
        self._told = 0
        self._compared = False
        self.step = 0

    def interval_after(self, step: int) -> int:
        """Steps from the boundary at this step to the next."""
        return self.stretch * (self._interval or max(SHORTEST, step // GROWTH))

    @property
    def first_due(self) -> int:
        """The step at which a run that begins can use its first forecast."""
        interval = self.interval_after(0)
        starts = math.ceil(self._push.start * (self._max_steps or 0) / interval)
        return interval * max(CONTEXT + 1, 0 if self._shadow else starts)

    def after_step(self) -> bool:
        """Count a step, add a part of the push; whether an interval ends. Raises what the ranks' communication raises, no more."""
        self.step += 1
        if not self._compared:
            facts: dict[str, Any] = {"step": self.step, "next": self._next, "taken": self._taken, "asking": self._asking}
            facts |= {"mode": self._mode, "interval": self._interval, "max_steps": self._max_steps, "push": self._push}
            self._ranks.check_alike(facts, () if self._flat.sharded else self._flat.parameters)
            self._compared = True
        if (self._next - self.step) % EVERY == 0:
            self.pushed.add()
        return self.step >= self._next

    def end_interval(self) -> None:
        """Do what is due at a boundary. Raises as `after_step` does."""
        self._next = self.step + self.interval_after(self.step)
        self.hear_news()
        self._decide()

    def begin_at(self, step: int) -> None:
        """Go on from a step with nothing in hand: other parameters are trained from now on."""
        self.step, self._next = step, step + self.interval_after(step)

    def observe(self, loss: Tensor | float) -> None:
        """Add the training loss of a step, a mean or each example's, to the mean of this interval; nothing waits for it."""
        self._losses = self._losses + (loss.detach().float().mean() if isinstance(loss, Tensor) else float(loss))
        self._told += 1

    def _decide(self) -> None:
        if self._asking:
            self._take_up()
        else:
            self._end_push()
        gain = self._gain_of_next()
        self._asking = self._taken + 1 >= CONTEXT and gain > 0
        self._take_snapshot(asked=self._asking)
        if self._asking and self._forecasts is not None:
            self._asked = self._forecasts.ask(gain=gain)

    def _gain_of_next(self) -> float:
        """The gain of the push that the forecast asked for now will make, an interval later; 1 in shadow, where none is made."""
        if self._max_steps is not None and self._next >= self._max_steps:
            return 0.0
        return 1.0 if self._shadow else self._push.gain_at(self._next, max_steps=self._max_steps)

    def _take_up(self) -> None:
        """End the push under way, and begin what was asked for one boundary ago."""
        if not self._shadow:
            reason = self._use("glided", self._begin_push)
            self._adapt(reason)
        elif self._forecasts is not None:
            _, reason, detail = self._collect()
            self._journal.add(Event(self.step, "nowcast", "skipped" if reason else "scored", reason, detail))
            if self._ranks.world == 1:  # others know nothing of this, and have to be at a boundary with this one
                self._adapt(reason)

    def _use(self, outcome: str, begin: Callable[[Tensor | None], None], *, wait: bool = False, horizon: int | None = None) -> str:
        """Begin with the displacement that was asked for, on all ranks or on none; if none, why."""
        start = time.perf_counter()
        displacement, reason, detail = self._collect(wait=wait) if self._forecasts is not None else (None, None, "")
        reason, displacement = self._ranks.share(reason, displacement, size=None if self._flat.sharded else self._flat.size)
        if not reason:
            try:
                begin(displacement)
            except Exception as error:  # most likely there is no memory; training goes on
                if self._ranks.world > 1:
                    raise  # the other ranks push
                log.exception("a forecast could not be used")
                reason, detail = reason_for(error), str(error)
        if reason:
            outcome, horizon = "skipped", None
            self._end_push()
        waited_s = time.perf_counter() - start
        self._journal.add(Event(self.step, "nowcast", outcome, reason, detail, horizon=horizon, seconds=waited_s))
        return reason

    def _begin_push(self, displacement: Tensor | None) -> None:
        self.pushed.set(displacement, parts=-(-(self._next - self.step) // EVERY))
        self._gain = self._push.gain_at(self.step, max_steps=self._max_steps)
        if self._forecasts is not None:
            self._forecasts.pushing(displacement)
            self._gain *= self._forecasts.braked

    def _end_push(self) -> None:
        self.pushed.clear()
        self._gain = 0.0
        if self._forecasts is not None:
            self._forecasts.pushing(None)

    def _adapt(self, reason: str) -> None:
        """Double the interval where forecasts keep coming late, and halve it after many in time; a new context begins then."""
        if reason not in ("", "late"):
            return
        sign = 1 if reason else -1
        self._trend = sign + (self._trend if sign * self._trend > 0 else 0)
        if self._trend == LATE and self.stretch < WIDEST:
            self.stretch, self._patience = 2 * self.stretch, 2 * self._patience
        elif self._trend <= -self._patience and self.stretch > 1:
            self.stretch //= 2
        else:
            return
        self._trend = self._taken = 0
        self._next = self.step + self.interval_after(self.step)
        if self._forecasts is not None:
            self._forecasts.sender.reset()
        why = "keep coming late" if reason else "come in time"
        log.warning("forecasts %s: a snapshot every %d steps from step %d on", why, self._next - self.step, self.step)

    def _collect(self, *, wait: bool = False) -> tuple[Tensor | None, str, str]:
        """What came of the request: a displacement (n,), or why there is none, as a word and as a sentence."""
        assert self._forecasts is not None
        request, self._asked = self._asked, None
        if request is None:
            return None, "history_missing", "no forecast was asked for"
        try:
            return self._forecasts.collect(request, wait=wait or self._forecasts.waits), "", ""
        except Exception as error:  # whatever it is, training goes on
            if not isinstance(error, NowcastError):
                log.exception("a forecast could not be used")
            return None, reason_for(error), str(error)

    def hear_news(self) -> None:
        """Record when the server was lost or came back."""
        for outcome, error in self._forecasts.sender.news() if self._forecasts else ():
            reason, detail = (reason_for(error), str(error)) if error is not None else ("", "")
            self._journal.add(Event(self.step, "server", outcome, reason, detail))

    def _take_snapshot(self, *, asked: bool = False) -> None:
        self._taken += 1
        progress = self._progress()  # at each boundary, so that no loss is a mean over more than an interval
        if self._forecasts is None:
            if self._flat.sharded:
                self._flat.copy_to(None)
            return
        try:
            self._forecasts.take(self.step, progress, asked=asked)
            self._journal.snapshots += 1
        except Exception as error:
            if not isinstance(error, NoRow):  # that happens where the server is slow
                log.exception("a snapshot could not be taken")
            self._forecasts.sender.reset()  # a context with a gap would be taken for an even one
            self._journal.add(Event(self.step, "snapshot", "dropped", reason_for(error), str(error)))

    def _progress(self) -> Tell:
        """How the run is doing, but for what the background thread finds out."""
        losses, told, self._losses, self._told = self._losses, self._told, 0.0, 0
        known: dict[str, Any] = {"step": self.step, "max_steps": self._max_steps, "gain": self._gain}
        known |= {"used": self._journal.used, "skipped": dict(self._journal.reasons)}

        def complete(coherence: float | None, layers: dict[str, float]) -> Progress:
            loss = float(losses) / told if told else math.nan  # on CUDA this waits for the device, and raises if that has failed
            return Progress(**known, coherence=coherence, layers=layers or None, loss=loss if math.isfinite(loss) else None)

        return complete

    def last_progress(self) -> Callable[[], Progress]:
        """What makes the progress at the end of the run."""
        return partial(self._progress(), None, self._forecasts.layers.means() if self._forecasts else {})

    def state_dict(self) -> dict[str, Any]:
        """The whole state, as numbers and tensors under fixed keys."""
        return {
            "step": self.step,
            "next": self._next,
            "taken": self._taken,
            "interval": self._interval or 0,
            "stretch": self.stretch,
            "patience": self._patience,
            "trend": self._trend,
            "asking": self._asking,
            "gain": self._gain,
            "pushed": self.pushed.state_dict(),
            "snapshots": self._forecasts.state_dict() if self._forecasts else {},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`. What was asked for then is asked again."""
        counts = ("step", "next", "stretch", "patience", "trend")
        self.step, self._next, self.stretch, self._patience, self._trend = (int(state[key]) for key in counts)
        self._gain, gain = float(state["gain"]), self._gain_of_next()
        even = state["interval"] == (self._interval or 0)  # else pushes of the context would be too long, or too short
        self._taken = int(state["taken"]) if even else 0
        self._asking = even and bool(state["asking"]) and gain > 0  # 0 if the run has become longer or shorter
        self.pushed.load_state_dict(state["pushed"])
        self._compared = False
        if self._forecasts is not None and state["snapshots"]:
            self._forecasts.load_state_dict(state["snapshots"])
            if self._asking:
                self._asked = self._forecasts.ask(gain=gain)
