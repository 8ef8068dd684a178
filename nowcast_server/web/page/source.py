"""Where the page's figures come from: this server, or all replicas of one. Viewers share what was read within a second."""

import time
from typing import Final, Protocol
from weakref import WeakKeyDictionary

from nowcast_server.jobs.registry import Job
from nowcast_server.service import Service
from nowcast_server.tokens import OPERATOR
from nowcast_server.web.page.views import CourseView, JobView, ServerView, View, job_view, server_view, stamp_of, thinned_curve
from protos.wiring import Wiring

FRESH_S: Final = 0.9
"""An overview that was read so recently serves other viewers as well."""


class Overview(View):
    """All that a tenant may see.

    Args:
        servers: this one, or all replicas.
        jobs: the tenant's.
    """

    servers: list[ServerView]
    jobs: list[JobView]


class Source(Protocol):
    """What the page asks."""

    async def overview(self, tenant: str) -> Overview:
        """The servers, and the tenant's jobs."""

    async def course(self, tenant: str, job: str, *, start: int = 0, thinned: int = 0) -> CourseView | None:
        """A job of the tenant in full; None if there is none.

        Args:
            tenant: whose.
            job: its id.
            start: how many points the viewer has,
            thinned: of which edition. Another one is sent in full.
        """

    async def wiring(self, tenant: str, job: str) -> Wiring | None:
        """The neural graph of a job; None if there is none."""


class Local:
    """A server's own jobs. Used on the event loop only.

    Args:
        service: the server.
        name: of the replica; empty for a server alone.
    """

    def __init__(self, service: Service, *, name: str = "") -> None:
        self._service, self._name = service, name
        self._curves: WeakKeyDictionary[Job, tuple[int, list[tuple[int, float]]]] = WeakKeyDictionary()
        self._views: WeakKeyDictionary[Job, JobView] = WeakKeyDictionary()

    async def overview(self, tenant: str) -> Overview:
        everyone = not self._service.tokens.tenants or tenant == OPERATOR
        server = server_view(self._service, name=self._name, open_to=everyone)
        return Overview(servers=[server], jobs=[self._view(job) for job in self._service.jobs.of(tenant)])

    async def course(self, tenant: str, job: str, *, start: int = 0, thinned: int = 0) -> CourseView | None:
        found = next((each for each in self._service.jobs.of(tenant) if each.id == job), None)
        if found is None:
            return None
        course = found.course
        first = max(0, min(start, len(course)) - 1) if thinned == course.thinned else 0  # the last one may have grown
        return CourseView(
            view=self._view(found),
            points=course.points(first),
            start=first,
            thinned=course.thinned,
            events=list(course.events),
        )

    async def wiring(self, tenant: str, job: str) -> Wiring | None:
        return next((each.spec.wiring for each in self._service.jobs.of(tenant) if each.id == job), None)

    def _view(self, job: Job) -> JobView:
        """A job as it is now; made anew when it has changed."""
        stamp = stamp_of(job)
        kept = self._views.get(job)
        if kept is None or kept.stamp != stamp:
            version, curve = self._curves.get(job, (-1, []))
            if version != job.course.version:
                curve = thinned_curve(job.course)
                self._curves[job] = (job.course.version, curve)
            kept = self._views[job] = job_view(job, curve=curve, stamp=stamp)
        return kept


class Shared:
    """A source whose overviews serve all viewers of a tenant for a moment.

    Args:
        source: to ask.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._read: dict[str, tuple[float, Overview]] = {}

    async def overview(self, tenant: str) -> Overview:
        now = time.monotonic()
        self._read = {whose: kept for whose, kept in self._read.items() if now - kept[0] < FRESH_S}
        if tenant not in self._read:
            self._read[tenant] = (now, await self._source.overview(tenant))
        return self._read[tenant][1]

    async def course(self, tenant: str, job: str, *, start: int = 0, thinned: int = 0) -> CourseView | None:
        return await self._source.course(tenant, job, start=start, thinned=thinned)

    async def wiring(self, tenant: str, job: str) -> Wiring | None:
        return await self._source.wiring(tenant, job)
