"""What the routes call on: one server's jobs, device, budgets and tokens, and the phase of its life."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import version

import torch

from nowcast_server.accelerator import Accelerator
from nowcast_server.device import Device, check_device, choose_device
from nowcast_server.forecasters import Forecaster
from nowcast_server.forecasters.registry import load_forecasters
from nowcast_server.jobs.budget import KEPT, SHARE, Budget
from nowcast_server.jobs.registrations import BODIES, Registrations, check_coverage, check_size
from nowcast_server.jobs.registry import Job, Jobs
from nowcast_server.logs import audit, log
from nowcast_server.metrics import Metrics
from nowcast_server.nowcasting import Nowcasting
from nowcast_server.settings import Settings
from nowcast_server.tokens import Tokens
from nowcast_server.training_map import TrainingMap
from nowcast_server.trajectories.recording import Recording
from protos import DISTRIBUTION
from protos.errors import NowcastError, TooLarge, Unavailable, UnknownForecaster
from protos.frames import VERSION
from protos.messages import Info, JobSpec, NowcastRequest


class Service:
    """A server without its HTTP. Forecasters that are not given are loaded while it already answers `/livez`; if that fails, or the
    device does, `on_failure` is called, as it can never be of use then. OSError or ValueError if the tokens cannot be read.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        forecasters: Mapping[str, Forecaster] | None = None,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        self.settings = settings
        self.chosen = choose_device(settings.device if forecasters is None else "cpu")
        self.metrics = Metrics()
        self.histories = Budget(settings.memory, tenant_bytes=settings.tenant_memory)
        self.jobs = Jobs(self.histories, settings=settings, on_evict=self._evicted)
        self.device = Device(
            limit=settings.queue,
            tenant_limit=settings.tenant_queue,
            job_limit=settings.job_queue,
            work_limit_s=settings.forecast_limit_s,
            on_start=self.metrics.queue_seconds.observe,
        )
        self.forecasts = Budget(settings.forecast_memory, on_return=self.device.wake)
        self.load_tokens()
        self.nowcasting = Nowcasting(jobs=self.jobs, device=self.device, memory=self.forecasts, metrics=self.metrics)
        self.recording = Recording(settings.record, jobs=self.jobs)
        self.map = TrainingMap(self.nowcasting, forecasters=lambda: self.forecasters)
        self.forecasters: Mapping[str, Forecaster] = {}
        self.failure: BaseException | None = None
        self.draining = False
        self.registrations = Registrations(Budget(BODIES * settings.max_registration, share=SHARE))
        self.viewers = 0  # of the page, kept up to date
        self._loaded = False
        self._given = forecasters
        self._on_failure = on_failure
        self._watch()

    def load_tokens(self) -> None:
        """Read who may call; OSError or ValueError if they cannot be read, and those before stay."""
        self.tokens = Tokens.load(self.settings)
        self.forecasts.share = SHARE if len(self.tokens.names) > 1 else 1.0

    def _evicted(self, job: Job) -> None:
        self.metrics.evictions.inc()
        job.course.happened("evicted", step=job.step)
        log.info("history evicted", extra={"tenant": job.tenant, "job": job.id, "size_bytes": job.evictable_bytes})

    def _watch(self) -> None:
        metrics = self.metrics
        metrics.queue_depth.set_function(lambda: self.device.waiting)
        metrics.jobs.set_function(lambda: len(self.jobs))
        metrics.ready.set_function(lambda: self.ready)
        metrics.device_info.labels(self.chosen.device, self.settings.device).set(1)
        self._watch_memory("histories", self.histories)
        self._watch_memory("forecasts", self.forecasts)

    def _watch_memory(self, use: str, budget: Budget) -> None:
        self.metrics.memory_bytes.labels(use).set_function(lambda: budget.used_bytes)
        self.metrics.memory_limit_bytes.labels(use).set(budget.limit_bytes)

    @property
    def ready(self) -> bool:
        """May work come?"""
        return self._loaded and not self.draining and self.failure is None

    def info(self) -> Info:
        """Versions, limits and forecasters."""
        return Info(
            version=version(DISTRIBUTION),
            protocol=VERSION,
            device=self.chosen.device,
            device_note=self.chosen.note,
            forecasters=list(self.forecasters),
            max_snapshot_bytes=self.settings.max_snapshot,
            max_memory_bytes=self.settings.memory,
        )

    def admit(self) -> None:
        """Let new work in, or raise Unavailable: the server starts, drains, or has failed."""
        if self.failure is not None:
            raise Unavailable("the server has failed; its log says why", retry_after_s=60)
        if self.draining:
            raise Unavailable("the server is shutting down", retry_after_s=5)
        if not self._loaded:
            raise Unavailable("the server is loading its forecasters", retry_after_s=1)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start the device and the housekeeping; at the end drop what waits and finish what runs."""
        self.device.start()
        tasks = [asyncio.create_task(each) for each in (self._load(), self._expire())]
        try:
            yield
        finally:
            self.draining = True
            for task in tasks:
                task.cancel()
            await asyncio.to_thread(self.device.stop)
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.recording.close()

    async def _load(self) -> None:
        start = time.perf_counter()
        try:
            forecasters = await asyncio.to_thread(self._forecasters) if self._given is None else self._given
            if self.chosen.device == "cpu":
                weights_bytes = sum(each.weights_bytes for each in forecasters.values())
                self.forecasts.check(weights_bytes, what="the weights of the forecasters", now=True)
                self.forecasts.take(KEPT, weights_bytes)
            else:
                await self._use_device()
            self.forecasters = forecasters
        except Exception as error:  # noqa: BLE001 -- whatever it is, the server is of no use without forecasters
            self.failure = error
            log.error("cannot load the forecasters: %s", error, exc_info=not isinstance(error, NowcastError))
            self._on_failure()
        else:
            self._loaded = True
            if self.chosen.note is not None:
                log.warning("forecasts are made on the CPU: %s", self.chosen.note)
            given = {"forecasters": ",".join(self.forecasters), "device": self.chosen.device}
            log.info("ready", extra={**given, "seconds": time.perf_counter() - start})

    def _forecasters(self) -> Mapping[str, Forecaster]:
        check_device(self.chosen.device)
        return load_forecasters(self.settings.checkpoints, device=self.chosen.device)

    async def _use_device(self) -> None:
        loop, device = asyncio.get_running_loop(), torch.device(self.chosen.device)
        limit_bytes = self.settings.device_memory
        accelerator = self.nowcasting.accelerator = await asyncio.to_thread(
            Accelerator, device, limit_bytes=limit_bytes, on_lost=lambda error: loop.call_soon_threadsafe(self._lost, error)
        )
        self._watch_memory("device", accelerator.memory)
        self.metrics.device_uploads.set_function(lambda: accelerator.uploads)

    def _lost(self, error: BaseException) -> None:
        """The device has failed for good: only a new process can use it again."""
        if self.failure is None:
            self.failure = error
            log.critical("the device %s has failed, and this process ends: %s", self.chosen.device, str(error).splitlines()[0])
            self._on_failure()

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(min(self.settings.idle_s / 4, 60.0))
            for job in self.jobs.expire(self.settings.idle_s):
                self.recording.end(job)
                self.metrics.jobs_expired.inc()
                audit.info("job expired", extra={"tenant": job.tenant, "job": job.id, "idle_s": self.settings.idle_s})

    async def register(self, tenant: str, job_id: str, *, spec: JobSpec, run: str | None = None) -> tuple[Job, bool]:
        """Take in a job; whether it is new. Raises now whatever would keep this server from forecasting for it hours later."""
        forecaster = self.forecasters.get(spec.forecaster)
        if forecaster is None:
            names = ", ".join(self.forecasters)
            raise UnknownForecaster(f"{spec.forecaster!r} is not one of this server's forecasters: {names}", field="forecaster")
        await asyncio.to_thread(self._check, spec, forecaster)
        if (known := self.jobs.known(tenant, job_id, spec=spec, run=run)) is not None:
            return known, False
        with self.jobs.reserved(tenant, job_id, spec=spec, run=run) as job:
            await asyncio.to_thread(self._plan, job, forecaster)
        known = self.jobs.known(tenant, job_id, spec=spec, run=run)
        assert known is not None
        if known is job:
            what = {"parameters": spec.wiring.size, "forecaster": spec.forecaster, "dtype": spec.dtype}
            audit.info("job registered", extra={"tenant": tenant, "job": job_id, **what})
        return known, known is job

    def _check(self, spec: JobSpec, forecaster: Forecaster) -> None:
        """Raise if this server cannot forecast for a job, whatever else it has to do. Takes a while for a large wiring."""
        forecaster.check(spec.wiring, context=spec.context)
        check_size(spec, max_snapshot_bytes=self.settings.max_snapshot)
        work_s, limit_s = forecaster.work_s(spec.wiring, context=spec.context), self.settings.forecast_limit_s
        if work_s > limit_s:
            detail = f"a forecast by {spec.forecaster} would take about {work_s:.0f} s; this server gives one {limit_s:g} s"
            raise TooLarge(detail, field="wiring.blocks")
        spec.wiring.hash  # noqa: B018 -- computed here, and kept

    def _plan(self, job: Job, forecaster: Forecaster) -> None:
        """Find out what a job's forecasts will take; raise if they never could be made."""
        wiring = job.spec.wiring
        check_coverage(wiring)  # allocates less than the history, whose memory has been set aside
        job.working_bytes = forecaster.working_bytes(wiring, context=job.spec.context)
        if self.nowcasting.accelerator is not None:
            job.host_bytes = forecaster.host_bytes(wiring)
        self.nowcasting.check(job, NowcastRequest(context=[0, 1], horizons=[1]))

    def finish(self, job: Job) -> None:
        """A run is over: free its history, keep its status."""
        self.jobs.finish(job)
        job.course.happened("finished", step=job.step)
        self.recording.end(job)
        audit.info("job finished", extra={"tenant": job.tenant, "job": job.id})

    def remove(self, job: Job) -> None:
        self.jobs.remove(job)
        self.recording.end(job)
        audit.info("job deleted", extra={"tenant": job.tenant, "job": job.id})
