"""Horizon policies: how far ahead to jump, and when not to."""

from dataclasses import dataclass
from typing import Protocol

from trainer_worker.errors import BadArgument


class Policy(Protocol):
    """Decides which horizons to ask for, and which of the forecasts to load. Asked on rank 0 and on all others alike."""

    @property
    def furthest(self) -> int:
        """The largest horizon it may ever ask for, in intervals."""

    def horizons(self, step: int) -> tuple[int, ...]:
        """What to ask for after `step` steps, the end of a period; () for no nowcast. Depends on nothing but its own state."""

    def choose(self, step: int, horizons: tuple[int, ...]) -> int:
        """Which of `horizons`, all of them forecast, to load."""


def paper_horizons(nowcasts: int, *, furthest: int = 40, power: float = 2.0) -> tuple[int, ...]:
    """`round(linspace(K^(1/p), 1, N)^p)`: far at first, near at the end (NiNo, section 4.2).

    Args:
        nowcasts: N, how many.
        furthest: K, the first horizon, in intervals.
        power: p; 1 is linear.
    """
    start = furthest ** (1 / power)
    return tuple(round((start + (1 - start) * index / max(1, nowcasts - 1)) ** power) for index in range(nowcasts))


@dataclass(frozen=True)
class PaperSchedule:
    """The paper's horizons over a run: 40 33 26 21 16 11 8 5 3 1 for ten periods.

    The nowcast that would fall on the last step is left out: no step would remain to repair what a jump breaks at first.

    Args:
        max_steps: optimizer steps of the whole run.
        period: steps between nowcasts.
        furthest: the first horizon, in intervals.
        power: of the decay.
    """

    max_steps: int
    period: int
    furthest: int = 40
    power: float = 2.0

    def horizons(self, step: int) -> tuple[int, ...]:
        """The horizon of this period, or () once the run is over."""
        plan = paper_horizons(self.max_steps // self.period, furthest=self.furthest, power=self.power)
        index = step // self.period - 1
        return plan[index : index + 1] if index >= 0 and step < self.max_steps else ()

    def choose(self, step: int, horizons: tuple[int, ...]) -> int:
        """The one there is."""
        del step
        return horizons[0]


@dataclass(frozen=True)
class FixedHorizon:
    """The same horizon at every period's end.

    Args:
        furthest: the horizon, in intervals.
        max_steps: of the run; there is no nowcast on its last step or after it. None for no end.
    """

    furthest: int
    max_steps: int | None = None

    def __post_init__(self) -> None:
        if self.furthest < 1:
            raise BadArgument("furthest", f"a horizon is at least 1 interval, not {self.furthest}")

    def horizons(self, step: int) -> tuple[int, ...]:
        """Always the same one."""
        return () if self.max_steps is not None and step >= self.max_steps else (self.furthest,)

    def choose(self, step: int, horizons: tuple[int, ...]) -> int:
        """The one there is."""
        del step
        return horizons[0]
