"""Forecasts in this process: the server's forecasters without the server."""

import threading
from collections.abc import Collection, Mapping
from typing import Final

import torch
from torch import Tensor

from nowcast_server.forecasters import Forecaster, load_forecaster
from nowcast_server.forecasters.learned import LearnedForecaster
from nowcast_server.forecasters.registry import forecaster_of
from nowcast_server.interruption import Cancelled, interruptible
from nowcast_server.jobs.skill import TrackRecord
from nowcast_server.nino.checkpoint import CheckpointError
from nowcast_server.streams import own_stream, wait
from protos.errors import BadForecast, HistoryMissing, OutOfMemoryBudget, Unavailable
from protos.messages import JobSpec, NowcastRequest, Progress, Skill
from trainer_worker.endpoints.endpoint import Asked, Deadline
from trainer_worker.endpoints.server import is_file
from trainer_worker.errors import BadArgument

SHARE_OF_FREE: Final = 0.5  # of the memory that training leaves free on its device, a forecast may take so much


def load_embedded(name: str, *, device: torch.device) -> Forecaster:
    """The forecaster `name`, or that of a checkpoint file, on a CUDA device or on the host; torch's random state and default device
    stay out of it. Raises `BadArgument` or `NowcastError`: no such forecaster, or its checkpoint cannot be read.
    """
    device = device if device.type == "cuda" else torch.device("cpu")  # of others nobody knows how much memory is free
    load = forecaster_of if is_file(name) else load_forecaster
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        try:
            forecaster: Forecaster = load(name, device=device)
        except (CheckpointError, OSError) as error:
            raise BadArgument("forecaster", f"{name}: {getattr(error, 'detail', error)}") from error
    if not isinstance(forecaster, LearnedForecaster):
        forecaster.device = None  # a few passes over the weights, which the host makes: training has the device's memory
    return forecaster


def free_memory(device: torch.device) -> int:
    """Bytes of a CUDA device that nobody uses, and that torch keeps without using them."""
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return free_bytes + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


class EmbeddedEndpoint:
    """Same forecasters, same inputs, same results bit for bit as a server with as many threads."""

    local = True

    def __init__(self, forecaster: Forecaster, spec: JobSpec) -> None:
        self.forecaster, self._spec, self._track = forecaster, spec, TrackRecord(spec)
        self._history: dict[int, Tensor] = {}
        self._there: dict[int, Tensor] = {}  # the context on the forecaster's device
        self._closed = threading.Event()

    def register(self, spec: JobSpec, *, replace: bool, deadline: Deadline) -> Collection[int]:
        del deadline
        if replace:
            self._track = TrackRecord(spec)
            self._forget()
        self._closed.clear()
        return tuple(self._history)

    def send(self, step: int, snapshot: Tensor, *, progress: Progress | None = None, deadline: Deadline) -> None:
        """Keep a reference: nothing is copied."""
        del progress, deadline
        if step not in self._history:
            self._track.came(step, snapshot)
        self._history[step] = snapshot
        while len(self._history) > self._spec.context:
            del self._history[min(self._history)]

    def forecast(self, asked: Asked, out: Tensor, *, deadline: Deadline) -> None:
        """Forecast on the calling thread, however long it takes; `close` ends it between two units of work."""
        *_, last = asked.context
        if asked.newest is not None:
            self.send(last, asked.newest, progress=asked.progress, deadline=deadline)
        missing = [step for step in asked.context if step not in self._history]
        if missing:
            raise HistoryMissing(f"the history lacks {missing}", field="context", missing=missing)
        states = {step: self._history[step] for step in asked.context}
        horizons = asked.horizons or (self.forecaster.glide_horizon,)
        try:
            with torch.no_grad(), interruptible(self._check_open):
                self._forecast(states, horizons, out)
        except Cancelled as error:
            raise Unavailable("the run has ended") from error
        if self._spec.mode != "jump" and bool(out.isfinite().all()):
            interval = NowcastRequest(context=list(asked.context)).interval
            self._track.made(last, [*states.values()], dict(zip(horizons, out, strict=True)), interval=interval)

    def _forecast(self, states: Mapping[int, Tensor], horizons: tuple[int, ...], out: Tensor) -> None:
        device = self.forecaster.device or torch.device("cpu")
        if device.type != "cpu":
            self._check_memory(states, device, rows=len(horizons))
        with own_stream(device, shared=False):
            if device.type != "cpu":  # of a context that rolls one snapshot is not there yet
                self._there = {step: self._there.get(step, state).to(device, non_blocking=True) for step, state in states.items()}
                states = self._there
                wait(device)  # if the forecast fails, later snapshots may be written where these were
            forecasts = self.forecaster.forecast(self._spec.wiring, tuple(states.values()), horizons=horizons)
            if forecasts.shape != out.shape:
                raise BadForecast(f"{self._spec.forecaster} gives the shape {tuple(forecasts.shape)}, not {tuple(out.shape)}")
            out.copy_(forecasts)

    def _check_memory(self, states: Mapping[int, Tensor], device: torch.device, *, rows: int) -> None:
        """Training comes first: a forecast takes no more than a share of what it leaves free on the device."""
        needed_bytes = sum(state.nbytes for step, state in states.items() if step not in self._there)
        wiring = self._spec.wiring
        needed_bytes += 4 * rows * wiring.size + self.forecaster.working_bytes(wiring, context=self._spec.context)
        free_bytes = free_memory(device)
        if needed_bytes > SHARE_OF_FREE * free_bytes:
            self._there = {}
            lacking = f"a forecast needs {needed_bytes / 1e9:.1f} GB of {device}, where training leaves {free_bytes / 1e9:.1f} GB"
            detail = f"{lacking}: use a server, 16-bit snapshots, or forecaster='linear', which computes on the host"
            raise OutOfMemoryBudget(detail, needed_bytes=needed_bytes, limit_bytes=int(SHARE_OF_FREE * free_bytes))

    def finish(self, progress: Progress, *, deadline: Deadline) -> Skill:
        """The skill as a server keeps it."""
        del progress, deadline
        self._forget()
        return self._track.skill()

    def close(self) -> None:
        """Stop a forecast that is under way."""
        self._closed.set()

    def _forget(self) -> None:
        self._history.clear()
        self._there = {}

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise Cancelled
