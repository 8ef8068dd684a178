"""Where forecasts come from, seen from a worker."""

from collections.abc import Collection
from typing import Protocol

from torch import Tensor

from protos.messages import JobSpec, Outcome, Skill
from trainer_worker.endpoints.deadline import Deadline


class Endpoint(Protocol):
    """One job's view of a server, or of forecasters in process. Called by one thread, the sender's, at a time.

    Every call may raise any `NowcastError`; it must return or raise before its deadline, give or take one operation of the network.
    """

    @property
    def local(self) -> bool:
        """Forecasts are made in this process: they cannot hang, so nothing is cut short, and results do not depend on time."""

    def register(self, spec: JobSpec, *, replace: bool, deadline: Deadline) -> Collection[int]:
        """Make the job known; the steps its history holds already. With `replace` it is forgotten first."""

    def send(self, step: int, snapshot: Tensor, *, deadline: Deadline) -> None:
        """Add a snapshot (n,) to the job's history. `snapshot` stays as it is while its step is in the context."""

    def forecast(self, step: int, horizons: tuple[int, ...], out: Tensor, *, deadline: Deadline) -> None:
        """Forecast from the context that ends at `step` into `out` (len(horizons), n) float32."""

    def report(self, outcome: Outcome, *, deadline: Deadline) -> None:
        """Say what became of a nowcast."""

    def skill(self, *, deadline: Deadline) -> Skill:
        """How the job's forecasts have come true so far."""

    def close(self) -> None:
        """Let go of connections and memory; may be called while another call is under way, which then fails."""
