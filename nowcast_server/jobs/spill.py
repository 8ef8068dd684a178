"""When memory is full, histories of jobs that rest go to disk, and come back when the job speaks again."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final

from nowcast_server.jobs.budget import Budget
from nowcast_server.jobs.registry import Job, Jobs
from nowcast_server.jobs.saved import Saved, open_nameless
from nowcast_server.logs import log
from nowcast_server.metrics import Metrics
from nowcast_server.settings import Settings
from protos.errors import Busy, OutOfMemoryBudget, UnknownJob

RETRY_AFTER_S: Final = 2.0
"""A job that cannot come back now waits for another to rest."""


class Spill:
    """Moves histories between memory and disk, off the event loop. Used on the event loop only.

    A job rests when it has no upload and no forecast, and nobody has called on it for `spill_idle_s`. That is also what bounds the
    traffic: a history goes to disk once in that time at most. The job itself, its wiring and its status stay in memory. A
    tenant's own limit counts what it has on disk as well.

    Args:
        settings: the folder, if there is one, and its limits.
        jobs: whose histories.
        memory: budget they come out of.
        metrics: to count in.

    Raises:
        OSError: no file can be made in the folder.
    """

    def __init__(self, settings: Settings, *, jobs: Jobs, memory: Budget, metrics: Metrics) -> None:
        self.disk = Budget(settings.spill_limit)
        self._folder = settings.spill
        self._idle_s = settings.spill_idle_s
        self._jobs = jobs
        self._memory = memory
        self._metrics = metrics
        self._making_room = asyncio.Lock()
        if self._folder is not None:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            open_nameless(self._folder).close()

    @asynccontextmanager
    async def using(self, job: Job) -> AsyncIterator[None]:
        """An upload or forecast of the job: as long as the context lasts, the history is in memory.

        Raises:
            UnknownJob: it was deleted, or has expired, while the call came.
            Busy: it is on disk, and there is no room for it now.
        """
        if job.closed:
            raise UnknownJob(f"job {job.id!r} is gone: register it again and resend its snapshots", field="job")
        with self._jobs.using(job):
            while job.moving is not None or job.history.away:
                await (asyncio.shield(job.moving) if job.moving is not None else self._move(job, self._bring_back(job)))
            yield

    async def make_room(self, size_bytes: int, *, tenant: str) -> None:
        """Spill histories until memory has so many bytes left for a new job, if there are enough that rest; else none at all.

        On disk it leaves free what the largest history takes: the last of the room there is for jobs to trade places.

        Args:
            size_bytes: to be taken at once when this returns; there may still be fewer.
            tenant: who wants them.
        """
        largest_bytes = max((job.history.size_bytes for job in self._jobs), default=0)
        await self._make_room(size_bytes, tenant=tenant, spare_bytes=largest_bytes)

    async def _make_room(self, size_bytes: int, *, tenant: str, spare_bytes: int) -> None:
        if self._folder is None:
            return
        async with self._making_room:
            while victim := self._victim(size_bytes - self._memory.left_bytes, tenant, self.disk.left_bytes - spare_bytes):
                if not await self._move(victim, self._put_away(victim)):
                    return

    def _victim(self, lacking_bytes: int, tenant: str, disk_bytes: int) -> Job | None:
        """The history to spill next; None if none need, or all that rest and find room on disk would not do.

        Whoever has rested longest goes first; but those of other tenants who have no more than an equal share of memory go last,
        so that nobody's histories are driven out by a tenant that registers job after job.
        """
        used = Counter[str]()
        for job in self._jobs:
            used[job.tenant] += job.memory_bytes - job.history.size_bytes * job.history.away
        share = self._memory.limit_bytes / max(1, len(used))
        resting = [job for job in self._jobs if self._rests(job)]
        resting.sort(key=lambda job: (job.tenant != tenant and used[job.tenant] <= share, job.seen))
        chosen = []
        for job in resting:
            if lacking_bytes > 0 and job.history.size_bytes <= disk_bytes:
                chosen.append(job)
                lacking_bytes -= job.history.size_bytes
                disk_bytes -= job.history.size_bytes
        return chosen[0] if chosen and lacking_bytes <= 0 else None

    def _rests(self, job: Job) -> bool:
        busy = job.users or job.moving is not None or job.history.in_use
        return not busy and not job.history.away and job.seen <= time.monotonic() - self._idle_s

    async def _move(self, job: Job, move: Coroutine[Any, Any, bool]) -> bool:
        """Move a history, to the end even if nobody waits for it any more."""

        async def moved() -> bool:
            try:
                return await move
            finally:
                job.moving = None
                self._jobs.leave(job, called=False)

        self._jobs.enter(job)
        job.moving = asyncio.create_task(moved())
        return await asyncio.shield(job.moving)

    async def _put_away(self, job: Job) -> bool:
        """Spill a history; False if the disk fails."""
        assert self._folder is not None
        history = job.history
        self.disk.take(history.size_bytes, what="a spilled history")
        try:
            saved = await asyncio.to_thread(Saved.write, self._folder, history.rows, held=history.held)
        except OSError as error:
            self.disk.give(history.size_bytes)
            self._metrics.spills.labels("failed").inc()
            log.error("cannot spill to %s: %s", self._folder, error, extra=_whose(job))
            return False
        if job.users > 1:  # somebody has called meanwhile, and waits
            saved.close()
            self.disk.give(history.size_bytes)
        else:
            history.part()
            job.saved, job.place = saved, self.disk
            self._memory.give(history.size_bytes)
            self._metrics.spills.labels("written").inc()
        return True

    async def _bring_back(self, job: Job) -> bool:
        """Read a history; what was spoilt on disk is forgotten, and the worker asked for it again.

        Raises:
            Busy: memory is full of histories that are in use.
            OutOfMemoryBudget: the machine has not the memory the budget promised.
        """
        history, saved = job.history, job.saved
        assert saved is not None
        await self._make_room(history.size_bytes, tenant=job.tenant, spare_bytes=0)
        try:
            self._memory.take(history.size_bytes, what="the history")
        except OutOfMemoryBudget:
            raise Busy("the job's history is on disk, and memory full of others", retry_after_s=RETRY_AFTER_S) from None
        try:
            rows = history.allocate()
            lost = await asyncio.to_thread(saved.read, rows)
        except BaseException:
            self._memory.give(history.size_bytes)
            raise
        history.put_back(rows, lost=lost)
        saved.close()
        job.saved, job.place = None, self._memory
        self.disk.give(history.size_bytes)
        self._metrics.spills.labels("read").inc()
        if lost:
            self._metrics.spills.labels("broken").inc()
            log.error("the disk has spoilt the snapshots %s; the worker will be asked for them", lost, extra=_whose(job))
        return True


def _whose(job: Job) -> dict[str, str]:
    return {"tenant": job.tenant, "job": job.id}
