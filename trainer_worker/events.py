"""What happened to a run's nowcasts, one event at a time and in sum."""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from trainer_worker.errors import DECISIONS

log = logging.getLogger(__name__)

Kind = Literal["nowcast", "snapshot", "server"]


@dataclass(frozen=True, slots=True)
class Event:
    """Something worth telling.

    Args:
        step: optimizer steps taken when it happened.
        kind: `nowcast`, `snapshot` (one that could not be taken) or `server` (its coming and going).
        outcome: of a nowcast `accepted`, `rejected` or `skipped`; of a snapshot `dropped`; of the server `lost` or `back`.
        horizon: of the forecast that was loaded, in intervals; None if none was.
        reason: a stable word (`trainer_worker.errors`: `DECISIONS`, `reason_for`; docs/metrics.md); empty if all went well.
        detail: the same as a sentence.
        seconds: for which training waited.
        expected_loss: where the run was heading, when a jump was judged.
        loss: what it had come to then.
        cost_steps: that were undone: with a rejected jump, or with horizons that were tried and were not the best.
    """

    step: int
    kind: Kind
    outcome: str
    horizon: int | None = None
    reason: str = ""
    detail: str = ""
    seconds: float = 0.0
    expected_loss: float | None = None
    loss: float | None = None
    cost_steps: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        return asdict(self)

    def __str__(self) -> str:
        about = f"{self.kind} at step {self.step}: {self.outcome}"
        about += f", horizon {self.horizon}" if self.horizon is not None else ""
        about += f", loss {self.loss:.4g} where {self.expected_loss:.4g} was expected" if self.loss is not None else ""
        about += f" ({self.reason}{': ' if self.detail else ''}{self.detail})" if self.reason else ""
        return about + (f", {self.seconds:.3g} s" if self.seconds else "")


@dataclass
class Tally:
    """A run's events, counted."""

    snapshots: int = 0
    dropped: int = 0
    nowcasts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    server: Counter[str] = field(default_factory=Counter)
    waited_s: float = 0.0
    cost_steps: int = 0

    def count(self, event: Event) -> None:
        if event.kind == "nowcast":
            self.nowcasts[event.outcome] += 1
            self.waited_s += event.seconds
            self.cost_steps += event.cost_steps
            if event.outcome != "accepted":
                self.reasons[event.reason] += 1
        elif event.kind == "snapshot":
            self.dropped += 1
        else:
            self.server[event.outcome] += 1


class Journal:
    """A run's events: kept, counted, logged and passed on.

    Args:
        job: named in the log.
        on_event: called with each event; what it raises is logged.
    """

    def __init__(self, job: str, on_event: Callable[[Event], None] | None) -> None:
        self._job, self._on_event = job, on_event
        self.events: list[Event] = []
        self.tally = Tally()

    def add(self, event: Event) -> None:
        """Take note of an event."""
        self.events.append(event)
        self.tally.count(event)
        log.log(logging.WARNING if event.reason and event.reason not in DECISIONS else logging.INFO, "%s: %s", self._job, event)
        if self._on_event is not None:
            try:
                self._on_event(event)
            except Exception:
                log.exception("on_event failed")

    def state_dict(self) -> dict[str, Any]:
        """All of it, as plain values."""
        return {"snapshots": self.tally.snapshots, "events": [event.to_dict() for event in self.events]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self.events = [Event(**event) for event in state["events"]]
        self.tally = Tally(snapshots=state["snapshots"])
        for event in self.events:
            self.tally.count(event)
