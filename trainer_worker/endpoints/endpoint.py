"""Where forecasts come from, seen from a worker."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from protos.messages import JobSpec, Progress, Skill
from trainer_worker.endpoints.deadline import Deadline


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """A forecast to be made."""

    context: Sequence[int]  # steps, oldest first
    horizons: tuple[int, ...] = ()  # in intervals; empty for the one that suits the forecaster
    newest: Tensor | None = None  # the last snapshot (n,) if it has not been sent yet: one call does for both
    progress: Progress | None = None  # of the run, to be told along with it


class Endpoint(Protocol):
    """One job's view of a server, or of forecasters in process; called by one thread, the sender's, at a time. Every call may raise
    any `NowcastError`; it must return or raise before its deadline, give or take one operation of the network.
    """

    @property
    def local(self) -> bool:
        """Forecasts are made in this process: nothing is cut short, and results do not depend on time."""

    def register(self, spec: JobSpec, *, replace: bool, deadline: Deadline) -> Collection[int]:
        """Make the job known; the steps its history holds already. With `replace` it is forgotten first."""

    def send(self, step: int, snapshot: Tensor, *, progress: Progress | None = None, deadline: Deadline) -> None:
        """Add a snapshot (n,), which stays as it is while its step is in a context, and tell the run's progress."""

    def forecast(self, asked: Asked, out: Tensor, *, deadline: Deadline) -> None:
        """Forecast into `out` (max(1, len(horizons)), n) float32."""

    def finish(self, progress: Progress, *, deadline: Deadline) -> Skill:
        """The run has ended, and its history may go; how its forecasts have come true."""

    def close(self) -> None:
        """Let go of connections and memory; may be called while another call is under way, which then fails soon."""
