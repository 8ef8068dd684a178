"""What a nowcast may jump to: forecasts that are asked for, waited for, made ready on rank 0, and loaded on every rank."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from torch import Tensor

from protos.errors import NowcastError
from trainer_worker.context import Context
from trainer_worker.endpoints.sender import Request
from trainer_worker.errors import reason_for
from trainer_worker.jump import Landing
from trainer_worker.weights.distributed import Ranks
from trainer_worker.weights.flat import FlatParameters

log = logging.getLogger(__name__)

Mode = Literal["blocking", "overlap", "shadow"]
WAITING: Final = "waiting"


@dataclass
class Pending:
    """A nowcast that was asked for; `request` is made anew after a resume, and on rank 0 alone."""

    step: int
    horizons: tuple[int, ...]
    request: Request | None = None


class Candidates:
    """The forecasts of one nowcast at a time. Rank 0 has them, until each has been loaded or they are dropped.

    Args:
        context: fetches forecasts; None on other ranks.
        parameters: what jumps.
        ranks: that jump together.
        landing: makes the jumps.
        interval: steps between snapshots.
        mode: whether training waits for forecasts, goes on meanwhile, or never loads them.
        late: the weights are not those the forecasts start from: they move by the displacement.
    """

    def __init__(
        self,
        context: Context | None,
        parameters: FlatParameters,
        *,
        ranks: Ranks,
        landing: Landing,
        interval: int,
        mode: Mode,
        late: bool,
    ) -> None:
        self._context, self._parameters, self._ranks, self._landing = context, parameters, ranks, landing
        self._interval, self._mode, self._late = interval, mode, late
        self._targets: dict[int, Tensor] = {}  # by horizon, as `FlatParameters.load` takes them; in the context's memory
        self.pending: Pending | None = None

    def ask(self, step: int, horizons: tuple[int, ...]) -> Pending:
        """Have them forecast from the context that ends at `step`; returns at once."""
        request = self._context.ask(step, horizons) if self._context is not None else None
        self.pending = Pending(step, horizons, request)
        return self.pending

    def due(self, step: int) -> Pending | None:
        """What was asked for, if it is time to look for the answer. One process looks after every step; ranks, who have to look
        together, after 1, 2, 4, 8, ... steps. The last look is one step before the next snapshot.
        """
        if self.pending is None:
            return None
        if self._context is not None and self.pending.request is None:
            self.ask(self.pending.step, self.pending.horizons)  # resumed
        since = step - self.pending.step
        look = self._ranks.world == 1 or since & (since - 1) == 0 or since >= self._interval - 1
        return self.pending if look else None

    def collect(self, pending: Pending, step: int) -> tuple[str, str]:
        """Make the forecasts ready, or say why there is to be no jump, in a word, alike on all ranks, and in a sentence, on rank 0.
        `WAITING` is to look again.
        """
        last_look = self._mode == "blocking" or step - pending.step >= self._interval - 1
        word, sentence = self._fetch(pending, last_look=last_look)
        word = self._ranks.agree(word)
        if word != WAITING:
            self.pending = None
        return word, sentence

    def _fetch(self, pending: Pending, *, last_look: bool) -> tuple[str | None, str]:
        """Rank 0's word, and the sentence."""
        if self._context is None or pending.request is None:
            return None, ""
        if not last_look and not pending.request.done.is_set():
            return WAITING, ""
        try:
            forecasts = self._context.collect(pending.request, wait=self._mode == "blocking")
            if self._mode == "shadow":
                return "shadow", f"not loaded: horizon {', '.join(map(str, pending.horizons))}"
            first, last = self._context.ends()
            for forecast in forecasts:
                self._landing.soften(forecast, first=first, last=last)
                self._parameters.displace(forecast, last=last, late=self._late)
        except Exception as error:
            if not isinstance(error, NowcastError):
                log.exception("the nowcast failed")
            return reason_for(error), str(error)
        self._targets = dict(zip(pending.horizons, forecasts, strict=True))
        return "", ""

    def load(self, horizon: int) -> None:
        """Jump to one of them, on every rank. Its target is shared now, and is gone then."""
        size = None if self._parameters.sharded else self._parameters.size
        target = self._ranks.share(self._targets.pop(horizon, None), size=size)
        self._landing.make(target, late=self._late)

    def drop(self) -> None:
        """None of them is going to be loaded any more."""
        self._targets.clear()

    def state_dict(self) -> dict[str, Any]:
        """What is waited for, and what may still be loaded, copied."""
        return {
            "pending": [self.pending.step, list(self.pending.horizons)] if self.pending else None,
            "targets": {str(horizon): target.clone() for horizon, target in self._targets.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`; rank 0's will do for all."""
        self.pending = Pending(state["pending"][0], tuple(state["pending"][1])) if state["pending"] else None
        mine = state["targets"] if self._context is not None else {}
        self._targets = {int(horizon): target.clone() for horizon, target in mine.items()}
