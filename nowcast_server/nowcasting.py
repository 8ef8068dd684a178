"""One nowcast from request to answer: reserve memory, wait for the device, forecast; stop if the client is gone."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from nowcast_server.accelerator import Accelerator, Reservation
from nowcast_server.device import Device
from nowcast_server.forecasters import Forecaster
from nowcast_server.forecasting import Forecasts, forecast, forecast_bytes
from nowcast_server.jobs.budget import Budget, Loan
from nowcast_server.jobs.history import Context
from nowcast_server.jobs.registry import Job, Jobs
from nowcast_server.metrics import Metrics
from protos.errors import BadRequest, DeadlineExceeded, NowcastError
from protos.frames import DTYPE_BYTES
from protos.messages import DEADLINE_HEADER, JobSpec, NowcastRequest

Result = TypeVar("Result")


class Gone(Exception):
    """The client has disconnected."""


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
        """Forecasts for a job; their memory is lent from when they are begun until the context ends.

        `gone` returns when the client has hung up; after `deadline_s` it does not want the answer any more. Then a forecast that
        had not begun never will, and one that had ends soon.

        Raises:
            BadRequest, HistoryMissing, Busy, OutOfMemoryBudget, Unavailable, DeadlineExceeded, Gone, BadForecast
        """
        loan: Loan | None = None
        try:
            try:
                request = complete(request, job.spec, forecaster=forecaster)
                loan = Loan(self.memory, tenant=job.tenant, size_bytes=self.check(job, request))
                async with _within(deadline_s):
                    forecasts = await self._wanted(self._forecast(job, request, forecaster=forecaster, loan=loan), gone)
            except BaseException as error:
                self._count(job, _outcome(error))
                raise
            self._count(job, "made")
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
            self.accelerator.check(made_bytes + job.working_bytes + context_bytes, what=what)
            size_bytes = len(request.horizons) * spec.wiring.size * DTYPE_BYTES[request.dtype] + job.host_bytes
        self.memory.check(size_bytes, what=what)
        return size_bytes

    async def _wanted(self, future: "Future[Forecasts]", gone: Callable[[], Awaitable[None]]) -> Forecasts:
        """The forecasts, as long as somebody wants them."""
        result: asyncio.Future[Forecasts] = asyncio.wrap_future(future)
        left: asyncio.Future[None] = asyncio.ensure_future(gone())
        waiting: set[asyncio.Future[Any]] = {result, left}
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
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
        with self.jobs.using(job):
            context = job.history.read(request.context)
            if self.accelerator is not None:
                working_bytes = forecast_bytes(job.spec, request) + job.working_bytes
                reservation = self.accelerator.reservation(context, working_bytes=working_bytes)
            work = partial(forecast, forecaster, spec=job.spec, context=context, request=request, reservation=reservation)
            keep = partial(self._keep, job, context, request.interval, time.perf_counter())
            future = self.submit(job, context, work, loan=loan, begin=partial(_begin, reservation, loan), keep=keep)
        if reservation is not None:
            future.add_done_callback(partial(self._release, reservation))
        return future

    def submit(
        self,
        job: Job,
        context: Context,
        work: Callable[[], Result],
        *,
        loan: Loan,
        keep: Callable[["Future[Result]"], None],
        begin: Callable[[], bool] = lambda: True,
    ) -> "Future[Result]":
        """Have the device do `work` from the context of a job. When it has ended, `keep` is called on the event loop, and then the
        context and the loan are given back. Raises as `Device.submit` does.
        """
        loop = asyncio.get_running_loop()
        self.jobs.enter(job)
        loan.hold()
        try:
            future = self.device.submit(work, tenant=job.tenant, job=job.id, begin=begin)
        except BaseException:
            self._done(job, context, loan)
            raise

        def ended(done: "Future[Result]") -> None:
            loop.call_soon_threadsafe(keep, done)
            loop.call_soon_threadsafe(self._done, job, context, loan)

        future.add_done_callback(ended)
        return future

    def _release(self, reservation: Reservation, _: "Future[Forecasts]") -> None:
        reservation.end()
        self.device.wake()

    def _keep(self, job: Job, context: Context, interval: float, asked: float, future: "Future[Forecasts]") -> None:
        """Remember a forecast until its future comes, and what it took."""
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

    def _count(self, job: Job, outcome: str) -> None:
        self.metrics.forecasts.labels(job.spec.forecaster, outcome).inc()


def _begin(reservation: Reservation | None, loan: Loan) -> bool:
    if reservation is not None and not reservation.begin():
        return False
    if loan.begin():
        return True
    if reservation is not None:
        reservation.end()
    return False


def complete(request: NowcastRequest, spec: JobSpec, *, forecaster: Forecaster) -> NowcastRequest:
    """The request with its horizons: those asked for, or the one that suits the forecaster. Raises BadRequest if it cannot be."""
    if len(request.context) != spec.context:
        raise BadRequest(f"a context of this job has {spec.context} steps, not {len(request.context)}", field="context")
    horizons = request.horizons or [forecaster.glide_horizon]
    if forecaster.max_horizon is not None and max(horizons) > forecaster.max_horizon:
        detail = f"{spec.forecaster} looks at most {forecaster.max_horizon} intervals ahead, not {max(horizons)}"
        raise BadRequest(detail, field="horizons", max_horizon=forecaster.max_horizon)
    return request.model_copy(update={"horizons": horizons})


def _outcome(error: BaseException) -> str:
    if isinstance(error, NowcastError):
        return error.code
    return NowcastError.code if isinstance(error, Exception) and not isinstance(error, Gone) else "gone"


@asynccontextmanager
async def _within(deadline_s: float | None) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(deadline_s) as limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise
        raise DeadlineExceeded(f"the forecast was not made within the {deadline_s} s given", field=DEADLINE_HEADER) from None
