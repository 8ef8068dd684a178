"""Learning rates: a forecast goes on at the rate of its context, so a falling rate shortens the way ahead."""

import copy
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from trainer_worker.errors import BadArgument

log = logging.getLogger(__name__)


class Rates:
    """The rates of the context, and those to come.

    With a scheduler they are looked up, by stepping a copy of it. Without one, or with one that cannot be copied, they are drawn on
    as the straight line through the context's, never upwards: exact for a linear decay under way and close for a cosine, and it
    cannot see a decay that has not begun.

    Args:
        optimizer: whose groups have the rates; their sum counts.
        scheduler: that sets them, stepped every optimizer step or every epoch; None if it is not known.
        interval: steps between snapshots.
        max_steps: of the run; the last step's rate stands for all after it.

    Raises:
        BadArgument: a scheduler of another optimizer, or one that waits for losses.
    """

    def __init__(self, optimizer: Optimizer, scheduler: LRScheduler | None, *, interval: int, max_steps: int) -> None:
        if scheduler is not None:
            if not isinstance(scheduler, LRScheduler) or isinstance(scheduler, ReduceLROnPlateau):
                detail = f"{type(scheduler).__name__} cannot be looked ahead on; leave it out, and the context's rates are drawn on"
                raise BadArgument("lr_scheduler", detail)
            if scheduler.optimizer is not optimizer:
                raise BadArgument("lr_scheduler", "sets the rates of another optimizer")
        self._optimizer, self._scheduler = optimizer, scheduler
        self._interval, self._max_steps = interval, max_steps
        self._context: list[float] = []  # one a snapshot
        self._start: tuple[int, int] | None = None  # (step, epoch) when counting began

    def begin(self, step: int) -> None:
        """The first step has been counted: how often the scheduler is stepped is counted from here."""
        if self._start is None and self._scheduler is not None:
            self._start = step, _epoch(self._scheduler.state_dict())

    def note(self) -> None:
        """Take down the present rate, at a snapshot."""
        self._context.append(_sum(self._optimizer.param_groups))

    def forget(self) -> None:
        """The next context begins."""
        self._context.clear()

    def shorten(self, horizons: tuple[int, ...], *, step: int) -> tuple[int, ...]:
        """Horizons so much shorter as the rates of their intervals will be lower than the context's; those below 1 are left out.

        Args:
            horizons: in intervals.
            step: from which they count.
        """
        if not self._context or not (mean := sum(self._context) / len(self._context)) > 0:
            return horizons
        coming = self._coming(step, max(horizons))
        shortened = (min(horizon, round(sum(coming[:horizon]) / mean)) for horizon in horizons)
        return tuple(dict.fromkeys(horizon for horizon in shortened if horizon >= 1))

    def _coming(self, step: int, intervals: int) -> list[float]:
        """The rate in the middle of each of the next intervals."""
        middles = [min(round((index + 0.5) * self._interval), max(0, self._max_steps - step)) for index in range(intervals)]
        if self._scheduler is not None and self._start is not None and step > self._start[0]:
            pace = (_epoch(self._scheduler.state_dict()) - self._start[1]) / (step - self._start[0])
            try:
                known = _look_ahead(self._scheduler, self._optimizer, round(pace * middles[-1]))
                return [known[min(round(pace * middle), len(known) - 1)] for middle in middles]
            except Exception:  # a user's own scheduler may hold anything
                log.warning("the scheduler cannot be copied to look ahead on; from now on rates are drawn on", exc_info=True)
                self._scheduler = None
        last = self._context[-1]
        slope = min(0.0, (last - self._context[0]) / max(1, len(self._context) - 1) / self._interval)
        return [max(0.0, last + slope * middle) for middle in middles]

    def state_dict(self) -> dict[str, Any]:
        """All of it, as plain values."""
        return {"context": list(self._context), "start": list(self._start) if self._start else None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self._context = list(state["context"])
        self._start = (state["start"][0], state["start"][1]) if state["start"] else None


def _epoch(state: Mapping[str, Any]) -> int:
    """How often a scheduler was stepped, from its state; a `ChainedScheduler` leaves the counting to those inside."""
    return int(state["last_epoch"]) if "last_epoch" in state else _epoch(state["_schedulers"][0])


def _look_ahead(scheduler: LRScheduler, optimizer: Optimizer, steps: int) -> list[float]:
    """The rates now and after each of the scheduler's next steps, as far as it goes; the scheduler itself is left alone."""
    groups = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    stand_in = SimpleNamespace(param_groups=copy.deepcopy(groups), defaults=dict(optimizer.defaults), step=lambda: None)
    # Schedulers inside it get the stand-in too. Of functions copies are shallow: behind a method may stand the whole trainer.
    memo: dict[int, Any] = {id(function): copy.copy(function) for function in _functions(scheduler)}
    future = copy.deepcopy(scheduler, memo={**memo, id(optimizer): stand_in})
    rates = [_sum(stand_in.param_groups)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of steps out of order
        for _ in range(steps):
            try:
                future.step()
            except Exception as error:  # noqa: BLE001  # one-cycle schedules end, and a user's own may raise anything
                log.debug("the learning-rate schedule ends after %d steps: %s", len(rates) - 1, error)
                break
            rates.append(_sum(stand_in.param_groups))
    return rates


def _functions(scheduler: LRScheduler) -> Iterator[Callable[[int], float]]:
    """The user's functions that a scheduler, or one inside it, calls."""
    yield from getattr(scheduler, "lr_lambdas", ())
    for inside in getattr(scheduler, "_schedulers", ()):
        yield from _functions(inside)


def _sum(groups: list[dict[str, Any]]) -> float:
    return float(sum(float(group["lr"]) for group in groups))
