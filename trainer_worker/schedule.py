"""Horizon policies: how far ahead to jump, and when not to."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from trainer_worker.errors import BadArgument


class Policy(Protocol):
    """Decides how far to jump. Asked on rank 0 and on all others alike."""

    @property
    def furthest(self) -> int:
        """The largest horizon it may ever ask for, in intervals."""

    def horizons(self, step: int) -> tuple[int, ...]:
        """The candidates after `step` steps, the end of a period; () for no nowcast. Depends on nothing but its own state. The last
        step of a run is not asked about: no step would remain to repair what a jump breaks at first.

        The first is loaded. Where jumps are tried, the others are tried after it, in this order, as far as `Guard.budget` has room
        for their recovery windows, and the best stays.
        """


@runtime_checkable
class Learner(Policy, Protocol):
    """A policy that hears what became of its jumps. Told on all ranks alike, and only where jumps are tried."""

    def learn(self, *, accepted: bool) -> None:
        """The last jump stays, or was undone."""

    def state_dict(self) -> dict[str, Any]:
        """What was learnt, as plain values."""

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Go on from `state_dict()`."""


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
    """The paper's horizons over a run: 40 33 26 21 16 11 8 5 3 1 for ten periods, of which the last falls on the run's end and is
    not made.

    Args:
        max_steps: optimizer steps of the whole run.
        period: steps between nowcasts, the run's own: context * interval.
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


@dataclass(frozen=True)
class FixedHorizon:
    """The same horizon at every period's end.

    Args:
        furthest: the horizon, in intervals.
    """

    furthest: int

    def __post_init__(self) -> None:
        if type(self.furthest) is not int or self.furthest < 1:
            raise BadArgument("furthest", f"a horizon is a whole number of intervals, at least 1, not {self.furthest!r}")

    def horizons(self, step: int) -> tuple[int, ...]:
        """Always the same one."""
        del step
        return (self.furthest,)


@dataclass
class AdaptiveHorizon:
    """A horizon that finds itself: doubled by each jump that stays, halved by each that is undone.

    Args:
        start: the first horizon, in intervals.
        furthest: the largest.
    """

    start: int = 4
    furthest: int = 40
    _now: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not 1 <= self.start <= self.furthest:
            raise BadArgument("start", f"must be from 1 to furthest = {self.furthest} intervals, not {self.start}")
        self._now = self.start

    def horizons(self, step: int) -> tuple[int, ...]:
        """The present one."""
        del step
        return (self._now,)

    def learn(self, *, accepted: bool) -> None:
        """Bolder or more cautious."""
        self._now = min(self.furthest, 2 * self._now) if accepted else max(1, self._now // 2)

    def state_dict(self) -> dict[str, Any]:
        """The present horizon."""
        return {"now": self._now}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Go on with it."""
        self._now = state["now"]


class Cautious:
    """Any policy, its horizons halved by each jump that is undone and doubled again, up to themselves, by each that stays.

    Args:
        policy: that knows nothing of outcomes.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._halvings = 0

    @property
    def furthest(self) -> int:
        """The policy's own."""
        return self._policy.furthest

    @property
    def period(self) -> int | None:
        """Steps between nowcasts that the policy counts on; None if it does not."""
        return getattr(self._policy, "period", None)

    def horizons(self, step: int) -> tuple[int, ...]:
        """The policy's, each halved so often, none twice."""
        return tuple(dict.fromkeys(max(1, round(horizon / 2**self._halvings)) for horizon in self._policy.horizons(step)))

    def learn(self, *, accepted: bool) -> None:
        """One halving less or more; no more than make any horizon 1."""
        self._halvings = max(0, self._halvings - 1) if accepted else min(self.furthest.bit_length(), self._halvings + 1)

    def state_dict(self) -> dict[str, Any]:
        """How often horizons are halved."""
        return {"halvings": self._halvings}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Go on with it."""
        self._halvings = state["halvings"]


class BestAfterRecovery(Cautious):
    """Short trials of several horizons, of which the best stays.

    Each candidate is jumped to from the same weights and trained for a recovery window; the one with the lowest loss after that is
    judged as any jump is, and goes on from the end of its window. After one that is undone, all candidates are halved.

    That costs steps, as the windows of the others are undone: with c candidates a nowcast costs up to c recovery windows, c - 1 if
    the best stays. They have to be granted: a candidate after the first is only tried while its window fits, with those before it,
    into what is left of `Guard.budget`. Else there are fewer, in the end the first alone, and the default, 8% of the steps, is soon
    used up. `guard=Guard(budget=0.3)` is enough for three candidates at every nowcast, where a context has five snapshots (and a
    window is an interval: `recovery_steps`). It takes memory for the weights and the optimizer's state twice: before the jump, and
    of the best so far.

    Args:
        policy: the horizons to vary, one that knows nothing of outcomes: `PaperSchedule`, `FixedHorizon`.
        shares: of its horizon, in the order in which they are tried; what comes to the same horizon is tried once.
    """

    def __init__(self, policy: Policy, *, shares: tuple[float, ...] = (1.0, 0.5, 0.25)) -> None:
        if isinstance(policy, Learner):
            raise BadArgument("policy", f"{type(policy).__name__} learns from outcomes by itself: give one that does not")
        if not shares or not all(0 < share <= 1 for share in shares):
            raise BadArgument("shares", f"must be above 0 and at most 1, at least one of them, not {shares!r}")
        super().__init__(policy)
        self._shares = shares

    def horizons(self, step: int) -> tuple[int, ...]:
        """The shares of the cautious policy's, at least 1, none twice."""
        return tuple(dict.fromkeys(max(1, round(horizon * share)) for horizon in super().horizons(step) for share in self._shares))
