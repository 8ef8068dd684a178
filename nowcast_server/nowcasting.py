"""One nowcast from request to answer: reserve memory, wait for the device, forecast; stop if the client is gone."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch

from nowcast_server.accelerator import Accelerator, Reservation, is_short
from nowcast_server.device import Device
from nowcast_server.forecasters import Forecaster
from nowcast_server.jobs.budget import Budget, Loan
from nowcast_server.jobs.history import Context, first_not_finite
from nowcast_server.jobs.registry import Job, Jobs
from nowcast_server.metrics import Metrics
from protos.errors import BadForecast, BadRequest, DeadlineExceeded, NowcastError, OutOfMemoryBudget, Unavailable
from protos.frames import DTYPE_BYTES, Header
from protos.messages import DEADLINE_HEADER, JobSpec, NowcastRequest

Result = TypeVar("Result")
Make = Callable[[Sequence[torch.Tensor]], torch.Tensor]


class Gone(Exception):
    """The client has disconnected."""


@dataclass(frozen=True)
class Forecasts:
    """Forecasts on their way to a worker."""

    header: Header
    values: torch.Tensor  # (len(horizons), n) in the dtype asked for, on the CPU, finite
    seconds: float  # the device took

    @property
    def payload(self) -> memoryview:
        return self.values.view(torch.uint8).numpy().data.cast("B")


@dataclass
class Nowcasting:
    """Makes forecasts for jobs. Used on the event loop only; the forecasts themselves are made on the device."""

    jobs: Jobs
    device: Device
    memory: Budget  # of forecasts on the host
    metrics: Metrics
    accelerator: Accelerator | None = None  # they are made on; None for the CPU

    @asynccontextmanager
    async def ask(
        self,
        job: Job,
        request: NowcastRequest,
        *,
        forecaster: Forecaster,
        gone: Callable[[], Awaitable[None]],
        deadline_s: float | None,
    ) -> AsyncIterator[Forecasts]:
        """Forecasts for a job; their memory is lent from when they are begun until the context ends. `gone` returns when the client
        has hung up; after `deadline_s` it does not want the answer any more. Then a forecast that had not begun never will, and one
        that had ends soon. Raises Gone, and any error of the protocol.
        """
        loan, count = None, partial(self.metrics.forecasts.labels, job.spec.forecaster)
        try:
            try:
                request = request.model_copy(update={"horizons": request.horizons or [forecaster.glide_horizon]})
                loan = Loan(self.memory, tenant=job.tenant, size_bytes=self.check(job, request))
                future = self._forecast(job, request, forecaster=forecaster, loan=loan)
                forecasts = await self._wanted(future, gone, deadline_s)
            except BaseException as error:
                failed = isinstance(error, Exception) and not isinstance(error, Gone)
                count((error if isinstance(error, NowcastError) else NowcastError).code if failed else "gone").inc()
                raise
            count("made").inc()
            job.nowcasts += 1
            yield forecasts
        finally:
            if loan is not None:
                loan.end()

    def check(self, job: Job, request: NowcastRequest) -> int:
        """The memory of a nowcast on the host. Raise OutOfMemoryBudget if it could never be had, there or on the device."""
        spec, made_bytes = job.spec, forecast_bytes(job.spec, request)
        what = f"a forecast of {spec.wiring.size} values by {spec.forecaster}"
        if self.accelerator is None:
            size_bytes = made_bytes + job.working_bytes
        else:
            context_bytes = spec.context * spec.wiring.size * DTYPE_BYTES[spec.dtype]
            self.accelerator.memory.check(made_bytes + job.working_bytes + context_bytes, what=f"{what}, on the device,")
            size_bytes = len(request.horizons) * spec.wiring.size * DTYPE_BYTES[request.dtype] + job.host_bytes
        self.memory.check(size_bytes, what=what)
        return size_bytes

    async def _wanted(
        self, future: "Future[Forecasts]", gone: Callable[[], Awaitable[None]], deadline_s: float | None
    ) -> Forecasts:
        result: asyncio.Future[Forecasts] = asyncio.wrap_future(future)
        left: asyncio.Future[None] = asyncio.ensure_future(gone())
        waiting: set[asyncio.Future[Any]] = {result, left}
        try:
            if not (await asyncio.wait(waiting, timeout=deadline_s, return_when=asyncio.FIRST_COMPLETED))[0]:
                raise DeadlineExceeded(f"the forecast was not made within the {deadline_s} s given", field=DEADLINE_HEADER)
            if not result.done():
                raise Gone
            return await result
        finally:
            self.device.cancel(future)
            result.cancel()
            left.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await left
            # an error's traceback holds this frame, and the futures hold the error
            del future, result, left, waiting

    def _forecast(self, job: Job, request: NowcastRequest, *, forecaster: Forecaster, loan: Loan) -> "Future[Forecasts]":
        reservation: Reservation | None = None
        if len(request.context) != (count := job.spec.context):
            raise BadRequest(f"a context of this job has {count} steps, not {len(request.context)}", field="context")
        with self.jobs.using(job):
            context = job.history.read(request.context)
            if self.accelerator is not None:
                reservation = Reservation(self.accelerator, context, forecast_bytes(job.spec, request) + job.working_bytes)
            work = partial(forecast, forecaster, spec=job.spec, context=context, request=request, reservation=reservation)
            keep = partial(self._keep, job, context, request.interval, time.perf_counter())
            return self.submit(job, context, work, loan=loan, keep=keep, reservation=reservation)

    def submit(
        self,
        job: Job,
        context: Context,
        work: Callable[[], Result],
        *,
        loan: Loan,
        keep: Callable[["Future[Result]"], None],
        reservation: Reservation | None = None,
    ) -> "Future[Result]":
        """Have the device do `work` from the context of a job. When it has ended, `keep` is called on the event loop, and all that
        was taken is given back. Raises as `Device.submit` does.
        """
        loop = asyncio.get_running_loop()
        begin = loan.begin if reservation is None else partial(reservation.begin, also=loan.begin)
        self.jobs.enter(job)
        loan.hold()
        try:
            future = self.device.submit(work, tenant=job.tenant, job=job.id, begin=begin)
        except BaseException:
            self._done(job, context, loan)
            raise

        def ended(done: "Future[Result]") -> None:
            if reservation is not None:
                reservation.end()
                self.device.wake()
            loop.call_soon_threadsafe(keep, done)
            loop.call_soon_threadsafe(self._done, job, context, loan)

        future.add_done_callback(ended)
        return future

    def _keep(self, job: Job, context: Context, interval: float, asked: float, future: "Future[Forecasts]") -> None:
        if future.cancelled() or future.exception() is not None:
            return
        made = future.result()
        if job.spec.mode != "jump":
            forecasts = dict(zip(made.header.horizons, made.values, strict=True))
            job.track.made(context.step, context.states, forecasts, interval=interval)
        job.course.took("forecast", made.seconds)
        job.course.took("queue", max(0.0, time.perf_counter() - asked - made.seconds))
        self.metrics.forecast_seconds.labels(job.spec.forecaster).observe(made.seconds)

    def _done(self, job: Job, context: Context, loan: Loan) -> None:
        job.history.release(context)
        self.jobs.leave(job)
        loan.end()


def forecast_bytes(spec: JobSpec, request: NowcastRequest) -> int:
    """The most memory a nowcast takes besides what its forecaster works in: forecasts, also in the dtype asked for."""
    rows = len(request.horizons)
    converted = 0 if request.dtype == "float32" else rows * DTYPE_BYTES[request.dtype]
    return spec.wiring.size * (4 * rows + converted)


def forecast(
    forecaster: Forecaster, *, spec: JobSpec, context: Context, request: NowcastRequest, reservation: Reservation | None = None
) -> Forecasts:
    """Run the job's forecaster and check what it says; the reservation has begun, and is None on the CPU. BadForecast for values of
    the wrong shape or not finite in the dtype asked for, OutOfMemoryBudget, or Unavailable if the device has failed for good.
    """
    start = time.perf_counter()
    make = partial(_made, forecaster, spec, request)
    values = _on_host(make, context) if reservation is None else _on_device(make, reservation)
    header = Header("forecasts", request.dtype, tuple(values.shape), request.step, tuple(request.horizons))
    return Forecasts(header, values, time.perf_counter() - start)


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
    values = values.to(getattr(torch, request.dtype)).contiguous()
    wrong = first_not_finite(values.flatten())  # of all horizons at once: a device answers when all that is queued is done
    if wrong is not None:
        row, place = divmod(wrong, spec.wiring.size)
        said = f"{values[row, place].item()} as {request.dtype} for value {place} at horizon {request.horizons[row]}"
        raise BadForecast(f"{spec.forecaster} forecasts {said}", field="horizons")
    return values
