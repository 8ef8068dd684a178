"""A nowcast's candidates: each jumped to from the same state and trained for a recovery window of its own; the best stays.

A jump shows only after its window whether it was good, and a nowcast may name several horizons. So the first is made; after its
window everything goes back, the next is made, and so on. At the end the best has the state it had at the end of its own window:
nothing is trained twice, but the windows of the others are steps that were undone. A single candidate is a contest of one.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trainer_worker.trials.kept import KeptState


@dataclass
class Trial:
    """One candidate in its recovery window; plain values.

    Args:
        step: of the jump.
        horizon: in intervals.
        loss: the latest; at the end of the window, what is judged.
        steps: since the jump, when `loss` was measured; at the end, the window.
    """

    step: int
    horizon: int
    loss: float = math.inf
    steps: int = 0


class Contest:
    """The candidates of one nowcast at a time, and the states to go back to.

    Args:
        start: keeps the state before the first jump.
        aside: keeps that of the best candidate while others are tried; takes no memory before there are two.
    """

    def __init__(self, start: KeptState, aside: KeptState) -> None:
        self._start, self._aside = start, aside
        self._waiting: list[int] = []  # horizons still to be tried
        self.step = 0  # of the state before the first jump
        self.trial: Trial | None = None
        self.best: Trial | None = None

    @property
    def waiting(self) -> bool:
        """Whether there are candidates after the present one."""
        return bool(self._waiting)

    @property
    def alone(self) -> bool:
        """Whether there is nothing to compare the present candidate with: it is the only one, or the others had no chance."""
        return self.trial is not None and self.best is None and not self._waiting

    def begin(self, step: int, horizons: Sequence[int]) -> None:
        """Keep everything: the jump to the first of `horizons` is about to be made."""
        self._start.keep()
        first, *self._waiting = horizons
        self.step, self.trial, self.best = step, Trial(step, first), None

    def end_window(self, *, hopeless: bool) -> None:
        """The present candidate has had its time, or no chance. Of two that are level the earlier one is better."""
        assert self.trial is not None
        if not hopeless and (self.best is None or self.trial.loss < self.best.loss):
            self.best = self.trial

    def go_on(self, step: int) -> int:
        """Back to the start: the jump to the next candidate is about to be made; its horizon."""
        if self.best is self.trial:
            self._aside.keep()
        self._start.restore()
        self.trial = Trial(step, self._waiting.pop(0))
        return self.trial.horizon

    def finish(self, *, accepted: bool) -> bool:
        """The best stays, or everything is as before the first jump; whether weights had to go back for that."""
        stays = accepted and self.best is self.trial
        if not stays:
            (self._aside if accepted else self._start).restore()
        self._waiting, self.trial, self.best = [], None, None
        return not stays

    def state_dict(self) -> dict[str, Any]:
        """Everything, the kept states only as far as they may be gone back to."""
        return {
            "step": self.step,
            "waiting": list(self._waiting),
            "trial": asdict(self.trial) if self.trial else None,
            "best": asdict(self.best) if self.best else None,
            "start": self._start.state_dict() if self.trial else {},
            "aside": self._aside.state_dict() if self.best else {},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self._start.load_state_dict(state["start"])
        self._aside.load_state_dict(state["aside"])
        self.step, self._waiting = state["step"], list(state["waiting"])
        self.trial = Trial(**state["trial"]) if state["trial"] else None
        self.best = Trial(**state["best"]) if state["best"] else None
