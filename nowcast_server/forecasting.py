"""What the device thread does: from a context to checked forecasts, ready to be sent."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from nowcast_server.jobs.finite import first_not_finite
from nowcast_server.jobs.history import TORCH_DTYPES, Context
from protos.errors import BadForecast, OutOfMemoryBudget
from protos.frames import DTYPE_BYTES, Header
from protos.messages import JobSpec, NowcastRequest
from protos.wiring import Wiring


class Forecaster(Protocol):
    """What a server needs of a forecaster; `nowcast_server.forecasters` has the real ones.

    Attributes:
        max_horizon: the farthest it can look, in intervals; None if there is no end.
        glide_horizon: the one whose direction suits gliding, in intervals.
        weights_bytes: memory its weights take.
    """

    @property
    def name(self) -> str: ...
    @property
    def max_horizon(self) -> int | None: ...
    @property
    def weights_bytes(self) -> int: ...
    @property
    def glide_horizon(self) -> int: ...

    def forecast(self, wiring: Wiring, states: Sequence[torch.Tensor], horizons: Sequence[int]) -> torch.Tensor:
        """Snapshots (n,) in the job's dtype, oldest first -> forecasts (len(horizons), n); nothing given is modified."""

    def check(self, wiring: Wiring, *, context: int) -> None:
        """Raise BadRequest if it cannot forecast for this network, or not from so many snapshots."""

    def working_bytes(self, wiring: Wiring, *, context: int) -> int:
        """The most memory a forecast takes besides its states and its result, about. Called from any thread."""


@dataclass(frozen=True)
class Forecasts:
    """Forecasts on their way to a worker.

    Args:
        header: of the stream.
        values: (len(horizons), n) in the dtype asked for, on the CPU, finite.
        seconds: the device took.
    """

    header: Header
    values: torch.Tensor
    seconds: float

    @property
    def payload(self) -> memoryview:
        return self.values.view(torch.uint8).numpy().data.cast("B")


def forecast_bytes(spec: JobSpec, request: NowcastRequest) -> int:
    """The most memory a nowcast takes besides what its forecaster works in: forecasts, also in the dtype asked for."""
    rows = len(request.horizons)
    converted = 0 if request.dtype == "float32" else rows * DTYPE_BYTES[request.dtype]
    return spec.wiring.size * (4 * rows + converted)


def forecast(forecaster: Forecaster, *, spec: JobSpec, context: Context, request: NowcastRequest) -> Forecasts:
    """Run the forecaster and check what it says.

    Raises:
        BadForecast: values that are not finite, in the dtype asked for, or not of the right shape.
        OutOfMemoryBudget: the device has not the memory.
    """
    start = time.perf_counter()
    try:
        values = _forecast(forecaster, spec, context, tuple(request.horizons))
        values = values.to("cpu", TORCH_DTYPES[request.dtype]).contiguous()
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise OutOfMemoryBudget(f"the device has not the memory for this forecast: {error}") from error
    for horizon, row in zip(request.horizons, values, strict=True):
        wrong = first_not_finite(row)
        if wrong is not None:
            detail = f"{spec.forecaster} forecasts {row[wrong].item()} as {request.dtype} for value {wrong} at horizon {horizon}"
            raise BadForecast(detail, field="horizons")
    header = Header("forecasts", request.dtype, tuple(values.shape), request.step, tuple(request.horizons))
    return Forecasts(header, values, time.perf_counter() - start)


def _forecast(forecaster: Forecaster, spec: JobSpec, context: Context, horizons: tuple[int, ...]) -> torch.Tensor:
    values = forecaster.forecast(spec.wiring, context.states, horizons=horizons)
    if values.shape != (len(horizons), spec.wiring.size):
        raise BadForecast(f"{spec.forecaster} gives the shape {tuple(values.shape)}, not {(len(horizons), spec.wiring.size)}")
    return values.detach()
