"""What the device thread does: from a context to checked forecasts, ready to be sent."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from nowcast_server.accelerator import Reservation, is_short
from nowcast_server.forecasters import Forecaster
from nowcast_server.jobs.arrival import first_not_finite
from nowcast_server.jobs.history import TORCH_DTYPES, Context
from protos.errors import BadForecast, OutOfMemoryBudget, Unavailable
from protos.frames import DTYPE_BYTES, Header
from protos.messages import JobSpec, NowcastRequest


@dataclass(frozen=True)
class Forecasts:
    """Forecasts on their way to a worker."""

    header: Header
    values: torch.Tensor  # (len(horizons), n) in the dtype asked for, on the CPU, finite
    seconds: float  # the device took

    @property
    def payload(self) -> memoryview:
        return self.values.view(torch.uint8).numpy().data.cast("B")


def forecast_bytes(spec: JobSpec, request: NowcastRequest) -> int:
    """The most memory a nowcast takes besides what its forecaster works in: forecasts, also in the dtype asked for."""
    rows = len(request.horizons)
    converted = 0 if request.dtype == "float32" else rows * DTYPE_BYTES[request.dtype]
    return spec.wiring.size * (4 * rows + converted)


def forecast(
    forecaster: Forecaster, *, spec: JobSpec, context: Context, request: NowcastRequest, reservation: Reservation | None = None
) -> Forecasts:
    """Run the job's forecaster and check what it says; the reservation has begun, and is None on the CPU.

    BadForecast for values that are not finite in the dtype asked for or not of the right shape, OutOfMemoryBudget if the device has
    not the memory, Unavailable if it has failed for good.
    """
    start = time.perf_counter()
    make = partial(_made, forecaster, spec, request)
    values = _on_host(make, context) if reservation is None else _on_device(make, reservation)
    header = Header("forecasts", request.dtype, tuple(values.shape), request.step, tuple(request.horizons))
    return Forecasts(header, values, time.perf_counter() - start)


Make = Callable[[Sequence[torch.Tensor]], torch.Tensor]


def _on_host(make: Make, context: Context) -> torch.Tensor:
    try:
        return make(context.states)
    except (MemoryError, RuntimeError) as error:
        if not is_short(error):
            raise
        raise OutOfMemoryBudget(f"there is not the memory for this forecast: {error}") from error


def _on_device(make: Make, reservation: Reservation) -> torch.Tensor:
    accelerator, detail = reservation.accelerator, ""
    for _ in range(2):
        try:
            with reservation.states() as states:
                return make(states).to("cpu")
        except RuntimeError as error:
            if accelerator.lost():
                accelerator.on_lost(error)
                raise Unavailable("the device has failed, and the server with it", retry_after_s=5) from error
            if not is_short(error):
                raise
            detail = str(error).splitlines()[0]  # others use the device too, or memory is in pieces
        accelerator.free()  # here, as the error's frames hold what was computed so far
    raise OutOfMemoryBudget(f"the device has not the memory for this forecast: {detail}")


def _made(forecaster: Forecaster, spec: JobSpec, request: NowcastRequest, states: Sequence[torch.Tensor]) -> torch.Tensor:
    """The forecasts in the dtype asked for, where the snapshots are, checked."""
    values = forecaster.forecast(spec.wiring, states, horizons=tuple(request.horizons)).detach()
    expected = (len(request.horizons), spec.wiring.size)
    if values.shape != expected:
        raise BadForecast(f"{spec.forecaster} gives the shape {tuple(values.shape)}, not {expected}")
    values = values.to(TORCH_DTYPES[request.dtype]).contiguous()
    wrong = first_not_finite(values.flatten())  # of all horizons at once: a device answers when all that is queued is done
    if wrong is not None:
        row, place = divmod(wrong, spec.wiring.size)
        said = f"{values[row, place].item()} as {request.dtype} for value {place} at horizon {request.horizons[row]}"
        raise BadForecast(f"{spec.forecaster} forecasts {said}", field="horizons")
    return values
