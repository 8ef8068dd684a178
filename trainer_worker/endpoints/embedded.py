"""Forecasts in this process: the server's forecasters without the server."""

from collections.abc import Collection

import torch
from torch import Tensor

from nowcast_server.forecasters import Forecaster, load_forecaster
from nowcast_server.jobs.skill import TrackRecord
from nowcast_server.nino.options import CheckpointError
from protos.errors import BadForecast, HistoryMissing, NowcastError, UnknownJob
from protos.messages import JobSpec, Outcome, Skill
from trainer_worker.endpoints.deadline import Deadline
from trainer_worker.errors import BadArgument


def load_embedded(name: str, *, checkpoint: str | None, device: torch.device) -> Forecaster:
    """The forecaster `name`; torch's random state is left as it was, so that nowcasts do not change what a seed gives, and its
    default device has no say.

    Raises:
        BadArgument: no such forecaster, or its checkpoint cannot be read.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        try:
            return load_forecaster(name, checkpoint=checkpoint, device=device)
        except CheckpointError as error:  # its field is a tensor's or an option's name
            raise BadArgument("checkpoint", error.detail) from error
        except NowcastError as error:
            raise BadArgument(error.field or "forecaster", error.detail) from error


class EmbeddedEndpoint:
    """Same forecasters, same inputs, same results bit for bit as a server with as many threads.

    Args:
        forecaster: what makes the forecasts.
    """

    local = True

    def __init__(self, forecaster: Forecaster) -> None:
        self.forecaster = forecaster
        self._spec: JobSpec | None = None
        self._history: dict[int, Tensor] = {}
        self._track: TrackRecord | None = None

    def register(self, spec: JobSpec, *, replace: bool, deadline: Deadline) -> Collection[int]:
        """Keep the specification."""
        del deadline
        if self._track is None or replace:
            self._track = TrackRecord(spec)
        self._spec = spec
        if replace:
            self._history.clear()
        return tuple(self._history)

    def send(self, step: int, snapshot: Tensor, *, deadline: Deadline) -> None:
        """Keep a reference: nothing is copied."""
        del deadline
        spec = self._known()
        if step not in self._history:
            self._tracked().came(step, snapshot)
        self._history[step] = snapshot
        while len(self._history) > spec.context:
            del self._history[min(self._history)]

    def forecast(self, step: int, horizons: tuple[int, ...], out: Tensor, *, deadline: Deadline) -> None:
        """Forecast on the calling thread, however long it takes."""
        del deadline
        spec = self._known()
        steps = range(step - (spec.context - 1) * spec.interval, step + 1, spec.interval)
        missing = [needed for needed in steps if needed not in self._history]
        if missing:
            raise HistoryMissing(f"the history lacks {missing}", field="step", missing=missing)
        # copied: training that does not wait writes the next snapshots where these lie
        states = [self._history[needed].clone() for needed in steps]
        with torch.no_grad():
            forecasts = self.forecaster.forecast(spec.wiring, states, horizons=horizons)
        if forecasts.shape != out.shape:
            raise BadForecast(f"{spec.forecaster} gives the shape {tuple(forecasts.shape)}, not {tuple(out.shape)}")
        out.copy_(forecasts)
        if bool(out.isfinite().all()):  # else it is withheld
            self._tracked().made(step, states, dict(zip(horizons, out, strict=True)))

    def report(self, outcome: Outcome, *, deadline: Deadline) -> None:
        """Remember what became of the forecasts."""
        del deadline
        self._tracked().told(outcome)

    def skill(self, *, deadline: Deadline) -> Skill:
        """As a server keeps it."""
        del deadline
        return self._tracked().skill()

    def close(self) -> None:
        """Let go of the snapshots."""
        self._history.clear()

    def _tracked(self) -> TrackRecord:
        if self._track is None:
            raise UnknownJob("the job is not registered")
        return self._track

    def _known(self) -> JobSpec:
        if self._spec is None:
            raise UnknownJob("the job is not registered")
        return self._spec
