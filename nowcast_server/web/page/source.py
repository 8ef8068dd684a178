"""What the page shows, as plain values that replicas can hand to each other: read from this server, or merged from all of them."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final
from weakref import WeakKeyDictionary

from nowcast_server.jobs.course import Happening, Place, Point
from nowcast_server.jobs.registry import Job
from nowcast_server.service import Service
from nowcast_server.tokens import OPERATOR
from protos.messages import Info, JobStatus
from protos.wiring import Wiring

CURVE: Final = 64  # points of the curve on the overview
SILENT_S: Final = 60.0  # a run that has not called for so long, and for
SILENT_GAPS: Final = 5.0  # times what lies between its snapshots, has fallen silent
FRESH_S: Final = 0.9  # an overview that was read so recently serves other viewers as well

Ask = Callable[..., Awaitable[list[Any]]]  # calls a method of `Local`, named first, on every replica; their answers


@dataclass(frozen=True)
class JobView:
    """A job as the overview shows it."""

    status: JobStatus
    step: int  # the run has come to
    state: str  # `finished`, `silent`, `gliding`, `shadow` or `training`
    curve: list[tuple[int, float]]  # (step, mean training loss), thinned
    latency: dict[str, float]  # median seconds by stage
    stamp: tuple[int, int, str]  # changes with whatever is shown

    @property
    def job(self) -> str:
        return self.status.job


@dataclass(frozen=True)
class ServerView:
    """A server, or a replica of one. What is None is not the viewer's business, as it counts over all tenants."""

    name: str  # of the replica; empty for a server alone
    info: Info
    ready: bool
    at: float  # Unix seconds
    memory_bytes: int | None = None  # promised to histories
    memory_limit_bytes: int | None = None
    queued: int | None = None  # forecasts waiting for the device
    forecast_s: float | None = None  # seconds of forecasts on the device, so far


@dataclass(frozen=True)
class Overview:
    """All that a tenant may see: this server or all replicas, and the tenant's jobs."""

    servers: list[ServerView]  # one, or all replicas
    jobs: list[JobView]  # the tenant's


@dataclass(frozen=True)
class CourseView(JobView):
    points: list[Point]  # oldest first
    events: list[Happening]  # oldest first


@dataclass(frozen=True)
class MapView:
    """The runs of a tenant that have places on the map of training, oldest first, and whether this server makes any."""

    embeds: bool
    runs: list[tuple[JobStatus, list[Place]]]


class Local:
    """What `Source` tells, of a server's own jobs. Used on the event loop only. A server alone has no `name`."""

    def __init__(self, service: Service, *, name: str = "") -> None:
        self._service, self._name = service, name
        self._views: WeakKeyDictionary[Job, JobView] = WeakKeyDictionary()

    async def ask(self, method: str, *args: Any) -> list[Any]:
        """The answer of this server, as the only one."""
        return [getattr(self, method)(*args)]

    def overview(self, tenant: str) -> Overview:
        return Overview([self._server(tenant)], [self._view(job) for job in self._service.jobs.of(tenant)])

    def course(self, tenant: str, job: str) -> CourseView | None:
        if (found := self._service.jobs.find(tenant, job)) is None:
            return None
        return CourseView(**vars(self._view(found)), points=found.course.points(), events=list(found.course.events))

    def map(self, tenant: str) -> MapView:
        runs = [(job.status(), job.places.kept) for job in self._service.jobs.of(tenant) if job.places.kept]
        return MapView(self._service.map.network is not None, runs)

    def wiring(self, tenant: str, job: str) -> Wiring | None:
        found = self._service.jobs.find(tenant, job)
        return None if found is None else found.spec.wiring

    def _view(self, job: Job) -> JobView:
        """A job as it is now; made anew when something that is shown of it has changed."""
        stamp = (job.course.version, job.snapshots, _state(job))
        kept = self._views.get(job)
        if kept is None or kept.stamp != stamp:
            status = job.status()
            step = max(status.progress.step if status.progress else 0, status.steps[-1] if status.steps else 0)
            kept = self._views[job] = JobView(status, step, stamp[2], job.course.curve(CURVE), job.course.latency(), stamp)
        return kept

    def _server(self, tenant: str) -> ServerView:
        service, memory = self._service, self._service.histories
        everyones: tuple[Any, ...] = ()
        if tenant == OPERATOR or not service.tokens.tenants:
            samples = (sample for metric in service.metrics.forecast_seconds.collect() for sample in metric.samples)
            forecast_s = sum(sample.value for sample in samples if sample.name.endswith("_sum"))
            everyones = (memory.used_bytes, memory.limit_bytes, service.device.waiting, forecast_s)
        return ServerView(self._name, service.info(), service.ready, time.time(), *everyones)


def _state(job: Job) -> str:
    if job.finished:
        return "finished"
    quiet_s = time.time() - job.seen_at
    if quiet_s > max(SILENT_S, SILENT_GAPS * (job.seen_at - job.created_at) / max(job.snapshots, 1)):
        return "silent"
    if job.spec.mode == "shadow":
        return "shadow"
    return "gliding" if job.progress is not None and job.progress.gain > 0 else "training"


class Source:
    """The figures of one server, or of all its replicas; raises as `ask` does. Viewers of a tenant share one reading a second."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._read: dict[str, tuple[float, Overview]] = {}

    async def overview(self, tenant: str) -> Overview:
        now = time.monotonic()
        self._read = {whose: kept for whose, kept in self._read.items() if now - kept[0] < FRESH_S}
        if tenant not in self._read:
            found: list[Overview] = await self._ask("overview", tenant)
            servers = sorted((server for each in found for server in each.servers), key=lambda server: server.name)
            views = sorted((view for each in found for view in each.jobs), key=lambda view: view.status.seen_at)
            newest = {view.job: view for view in views}  # one that has just moved may be on two
            self._read[tenant] = (now, Overview(servers, list(newest.values())))
        return self._read[tenant][1]

    async def course(self, tenant: str, job: str) -> CourseView | None:
        """A job of the tenant in full, where it was last called on; None if there is none."""
        found = [each for each in await self._ask("course", tenant, job) if each is not None]
        return max(found, key=lambda course: course.status.seen_at, default=None)

    async def map(self, tenant: str) -> MapView:
        """The runs of the tenant on the map of training."""
        found: list[MapView] = await self._ask("map", tenant)
        runs = sorted((run for each in found for run in each.runs), key=lambda run: run[0].created_at)
        return MapView(any(each.embeds for each in found), runs)

    async def wiring(self, tenant: str, job: str) -> Wiring | None:
        """The neural graph of a job; None if there is none."""
        return next((each for each in await self._ask("wiring", tenant, job) if each is not None), None)
