"""Where forecasts come from, seen from a worker."""

from collections.abc import Collection, Sequence
from typing import Protocol

from torch import Tensor

from protos.messages import JobSpec, Progress, Skill
from trainer_worker.endpoints.deadline import Deadline


class Endpoint(Protocol):
    """One job's view of a server, or of forecasters in process. Called by one thread, the sender's, at a time.

    Every call may raise any `NowcastError`; it must return or raise before its deadline, give or take one operation of the network.
    """

    @property
    def local(self) -> bool:
        """Forecasts are made in this process: nothing is cut short, and results do not depend on time."""

    def register(self, spec: JobSpec, *, replace: bool, deadline: Deadline) -> Collection[int]:
        """Make the job known; the steps its history holds already. With `replace` it is forgotten first."""

    def send(self, step: int, snapshot: Tensor, *, progress: Progress | None = None, deadline: Deadline) -> None:
        """Add a snapshot (n,) to the job's history, and tell the run's progress. `snapshot` stays as it is while its step is in a
        context.
        """

    def forecast(
        self,
        context: Sequence[int],
        horizons: tuple[int, ...],
        out: Tensor,
        *,
        newest: Tensor | None = None,
        progress: Progress | None = None,
        deadline: Deadline,
    ) -> None:
        """Forecast from the snapshots of these steps into `out` (max(1, len(horizons)), n) float32.

        Args:
            context: steps, oldest first.
            horizons: in intervals; empty for the one that suits the forecaster.
            out: filled by the forecasts.
            newest: the last snapshot (n,) if it has not been sent yet: one call does for both.
            progress: of the run, to be told along with it.
            deadline: of the call.
        """

    def finish(self, progress: Progress, *, deadline: Deadline) -> Skill:
        """The run has ended, and its history may go; how its forecasts have come true."""

    def close(self) -> None:
        """Let go of connections and memory; may be called while another call is under way, which then fails soon."""
