"""The published method: predicted weights are loaded at once, every five intervals, by the paper's schedule."""

from typing import Any, Final

from trainer_worker.boundary import Boundaries
from trainer_worker.errors import BadArgument
from trainer_worker.push import CONTEXT

FURTHEST: Final = 40  # K, the first horizon, in intervals
POWER: Final = 2.0  # p, of its decay
JUMP_SHARE: Final = 50  # intervals in a run, as in the paper: 200 steps of 10,000


def jump_interval(max_steps: int) -> int:
    """Steps between the snapshots of a run that jumps."""
    return max(1, max_steps // JUMP_SHARE)


def paper_horizons(nowcasts: int) -> tuple[int, ...]:
    """`round(linspace(K^(1/p), 1, N)^p)`: far at first, near at the end (NiNo, arXiv 2409.04434, section 4.2).
    For N = 10 `nowcasts`: 40 33 26 21 16 11 8 5 3 1.
    """
    start = FURTHEST ** (1 / POWER)
    return tuple(round((start + (1 - start) * index / max(1, nowcasts - 1)) ** POWER) for index in range(nowcasts))


class Jumps(Boundaries):
    """Waits for a forecast at the end of every period, and loads it. Contexts do not overlap: each begins after a jump.
    Raises BadArgument: `max_steps` is None; the paper's schedule needs it.
    """

    def __init__(self, *args: Any, max_steps: int | None, interval: int | None, **kwargs: Any) -> None:
        if max_steps is None:
            raise BadArgument("max_steps", 'mode="jump" follows the paper\'s schedule over the whole run: pass the number of steps')
        super().__init__(*args, max_steps=max_steps, interval=interval or jump_interval(max_steps), **kwargs)
        self._end = max_steps
        self._period = CONTEXT * self.interval_after(0)
        self._horizons = paper_horizons(max_steps // self._period)

    @property
    def first_due(self) -> int:
        return self._period

    def _decide(self) -> None:
        due = self.step + (CONTEXT - 1 - self._taken) * self.interval_after(self.step)
        if due >= self._end:
            return  # no jump is left to take a snapshot for
        self._take_snapshot()
        if self.step == due:
            horizon = self._horizons[due // self._period - 1]
            if self._forecasts is not None:
                self._asked = self._forecasts.ask(gain=0.0, horizon=horizon)
            self._use("jumped", self.pushed.displace, wait=True, horizon=horizon)
            self._taken = 0
            if self._forecasts is not None:
                self._forecasts.sender.reset()
