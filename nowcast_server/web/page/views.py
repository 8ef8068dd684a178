"""What the page shows of a job and of a server, as plain values that replicas can hand to each other."""

import math
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Final

from pydantic import BaseModel, ConfigDict

from nowcast_server.jobs.course import Course, Happening, Point
from nowcast_server.jobs.registry import Job
from nowcast_server.service import Service
from protos import DISTRIBUTION
from protos.messages import JobStatus

CURVE: Final = 64
"""Points of the curve on the overview."""
SILENT_S: Final = 60.0
"""A run that has not called for so long, and for `SILENT_GAPS` times what lies between its snapshots, has fallen silent."""
SILENT_GAPS: Final = 5.0


class View(BaseModel):
    """Base: frozen, strict about its fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class JobView(View):
    """A job as the overview shows it.

    Args:
        status: as `GET /v1/jobs/{job}` gives it.
        step: the run has come to.
        state: `finished`, `silent`, `gliding`, `shadow`, `jumping` or `training`.
        curve: (step, mean training loss), thinned.
        latency: median seconds by stage.
        stamp: changes with whatever is shown.
    """

    status: JobStatus
    step: int
    state: str
    curve: list[tuple[int, float]]
    latency: dict[str, float]
    stamp: tuple[int, int, str]

    @property
    def job(self) -> str:
        return self.status.job


class ServerView(View):
    """A server, or a replica of one.

    Args:
        name: of the replica; empty for a server alone.
        version: of the package.
        ready: it takes work.
        device: where it forecasts.
        forecasters: it has.
        jobs: of all tenants; None if that is not the viewer's business, as with all that follows.
        memory_bytes, memory_limit_bytes: promised to histories.
        queued: forecasts waiting for the device.
        forecast_s: seconds of forecasts on the device, so far.
        at: Unix seconds.
    """

    name: str
    version: str
    ready: bool
    device: str
    forecasters: list[str]
    at: float
    jobs: int | None = None
    memory_bytes: int | None = None
    memory_limit_bytes: int | None = None
    queued: int | None = None
    forecast_s: float | None = None


class CourseView(View):
    """A run in full.

    Args:
        view: of the job.
        points: (step, seconds, loss, gain, coherence), oldest first, from the `start`-th on.
        start: 0 unless only newer ones were asked for.
        thinned: changes when points that were sent before are not those kept now.
        events: oldest first.
    """

    view: JobView
    points: list[Point]
    start: int
    thinned: int
    events: list[Happening]


def job_view(job: Job, *, curve: Sequence[tuple[int, float]], stamp: tuple[int, int, str]) -> JobView:
    """A job now; `stamp` is that of `stamp_of`."""
    status = job.status()
    step = max(status.progress.step if status.progress else 0, status.steps[-1] if status.steps else 0)
    return JobView(status=status, step=step, state=stamp[2], curve=list(curve), latency=job.course.latency(), stamp=stamp)


def stamp_of(job: Job) -> tuple[int, int, str]:
    """What changes whenever something that is shown of a job does."""
    return (job.course.version, job.snapshots, _state(job))


def _state(job: Job) -> str:
    if job.finished:
        return "finished"
    quiet_s = time.time() - job.seen_at
    if quiet_s > max(SILENT_S, SILENT_GAPS * (job.seen_at - job.created_at) / max(job.snapshots, 1)):
        return "silent"
    if job.spec.mode == "shadow":
        return "shadow"
    return "gliding" if job.progress is not None and job.progress.gain > 0 else "training"


def thinned_curve(course: Course) -> list[tuple[int, float]]:
    """The losses of a run, means over equal stretches, as the overview draws them."""
    known = course.losses()
    size = max(1, math.ceil(len(known) / CURVE))
    pieces = [known[start : start + size] for start in range(0, len(known), size)]
    return [(piece[-1][0], sum(loss for _, loss in piece) / len(piece)) for piece in pieces]


def server_view(service: Service, *, name: str, open_to: bool) -> ServerView:
    """A server now.

    Args:
        service: the server.
        name: of the replica.
        open_to: whether the viewer may see what concerns all tenants.
    """
    shared: dict[str, float] = {}
    if open_to:
        samples = (sample for metric in service.metrics.forecast_seconds.collect() for sample in metric.samples)
        shared = {
            "jobs": len(service.jobs),
            "memory_bytes": service.histories.used_bytes,
            "memory_limit_bytes": service.histories.limit_bytes,
            "queued": service.device.waiting,
            "forecast_s": sum(sample.value for sample in samples if sample.name.endswith("_sum")),
        }
    return ServerView(
        name=name,
        version=version(DISTRIBUTION),
        ready=service.ready,
        device=service.chosen.device,
        forecasters=list(service.forecasters),
        at=time.time(),
        **shared,  # type: ignore[arg-type]  # each is of its field's type
    )
