"""What happened to a run's nowcasts: single events, and counts."""

import json
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Event:
    """What became of a nowcast, a snapshot that could not be taken, or a change of the server's state.

    Args:
        step: optimizer steps taken when it happened.
        kind: `nowcast`, `snapshot` or `server`.
        outcome: of a nowcast `glided`, `jumped`, `scored` (shadow) or `skipped`; of a snapshot `dropped`; of the server `lost` or
            `back`.
        reason: why not, as a stable word (docs/errors.md); empty if all went well.
        detail: the reason as a sentence.
        horizon: of a jump, in intervals.
        seconds: how long training waited.
    """

    step: int
    kind: Literal["nowcast", "snapshot", "server"]
    outcome: str
    reason: str = ""
    detail: str = ""
    horizon: int | None = None
    seconds: float = 0.0

    to_dict = asdict
    """Its values, which JSON can hold."""

    def __str__(self) -> str:
        about = f"{self.kind} at step {self.step}: {self.outcome}"
        about += f", horizon {self.horizon}" if self.horizon is not None else ""
        about += f" ({self.reason}{': ' if self.detail else ''}{self.detail})" if self.reason else ""
        return about + (f", {self.seconds:.3g} s" if self.seconds else "")


class Journal:
    """Records, counts, logs and passes on a run's events. Of nowcasts skipped, and snapshots dropped, for one and the same reason,
    the first of a row is logged as a warning, the others for debugging; what `on_event` raises is logged.
    """

    def __init__(self, job: str, on_event: Callable[[Event], None] | None) -> None:
        self._job, self._on_event = job, on_event
        self._last: dict[str, str] = {}  # reason, of the last event of each kind
        self.events: list[Event] = []
        self.outcomes: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()  # of skipped nowcasts
        self.waited_s = 0.0
        self.snapshots = 0

    @property
    def used(self) -> int:
        """Forecasts that were used."""
        return sum(self.outcomes[outcome] for outcome in ("glided", "jumped", "scored"))

    def _count(self, event: Event) -> None:
        self.events.append(event)
        self.outcomes[event.outcome] += 1
        if event.kind == "nowcast":
            self.waited_s += event.seconds
            self.reasons.update([event.reason] if event.reason else [])

    def add(self, event: Event) -> None:
        self._count(event)
        log.log(self._level(event), "%s: %s", self._job, event)
        if self._on_event is not None:
            try:
                self._on_event(event)
            except Exception:
                log.exception("on_event failed")

    def _level(self, event: Event) -> int:
        if event.kind == "server":
            return logging.WARNING if event.reason else logging.INFO
        news = event.reason and event.reason != self._last.get(event.kind)
        self._last[event.kind] = event.reason
        if news:
            return logging.WARNING
        return logging.INFO if event.outcome == "jumped" else logging.DEBUG

    def state_dict(self) -> dict[str, Any]:
        """Under fixed keys: a number, and the events as JSON."""
        return {"snapshots": self.snapshots, "events": json.dumps([event.to_dict() for event in self.events])}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self.events, self.outcomes, self.reasons, self.waited_s = [], Counter(), Counter(), 0.0
        self.snapshots = int(state["snapshots"])
        for event in json.loads(state["events"]):
            self._count(Event(**event))


def closing_line(run: dict[str, Any], *, of: int, first_due: int, grown: bool) -> tuple[int, str]:
    """How a run `of` so many steps (0 if unknown) went, by its summary: a sentence, and the level to log it at. `first_due` is the
    step at which the first forecast could be used; `grown` says that the interval has become longer.
    """
    steps, used, skipped = run["steps"], run["nowcasts"]["used"], run["nowcasts"]["skipped"]
    counted = f"{steps} of {of} steps" if steps < of else f"{steps} steps"
    if not steps:
        return logging.WARNING, "no optimizer step was counted: keep the Nowcast in a variable, or call its step() for each"
    why = ", ".join(f"{count} {reason}" for reason, count in Counter(run["reasons"]).most_common())
    rest = f", {skipped} skipped ({why})" if why else ""
    rest += f"; they came late, so the interval grew to {run['interval']} steps" if grown else ""
    if used and run["mode"] == "shadow":
        judge = "see summary()['skill']" if run["skill"] else "none came true before the end, so their skill is unknown"
        return logging.INFO, f"{counted}, {used} forecasts scored{rest}; {judge}"
    if used:
        judge = "to see what they saved, run it without as well (`nowcast try`)"
        return logging.INFO, f"{counted}, {used} forecasts used{rest}; {judge}"
    if steps < first_due:
        rest += f": the first was due at step {first_due} (after six intervals and the share Push.start of max_steps)"
    return logging.WARNING, f"no forecast was used in {counted}{rest}"
