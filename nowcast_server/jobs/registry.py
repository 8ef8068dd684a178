"""The jobs a server knows, each with its history; what they may take is settled when they register."""

import asyncio
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Final

from nowcast_server.jobs.budget import Budget
from nowcast_server.jobs.history import History, history_bytes
from nowcast_server.jobs.saved import Saved
from nowcast_server.jobs.skill import TrackRecord, track_bytes
from nowcast_server.settings import Settings
from protos.errors import Busy, JobConflict, RunConflict, UnknownJob
from protos.messages import RUN_HEADER, JobSpec, JobStatus, Progress

ROW_BYTES: Final = 512
"""What a block of a wiring, or a parameter without its name, takes as Python objects, about."""


@dataclass(eq=False)
class Job:
    """One training run.

    Args:
        tenant: whose it is.
        id: its name with that tenant.
        spec: as registered.
        history: its snapshots.
        budget: its tenant's,
        memory_bytes: of which so many are promised to it.
        place: budget that the history's part of them comes out of: memory's, or the disk's while it is spilled.
        working_bytes: that its forecaster takes while it works.
        run: that registered it; None if it did not say.
    """

    tenant: str
    id: str
    spec: JobSpec
    history: History
    budget: Budget
    memory_bytes: int
    place: Budget
    working_bytes: int = 0
    run: str | None = None
    created_at: float = field(default_factory=time.time)
    seen_at: float = field(default_factory=time.time)
    seen: float = field(default_factory=time.monotonic)
    users: int = 0  # uploads and forecasts in flight
    closed: bool = False
    ended: bool = False  # closed, and its memory given back
    saved: Saved | None = None  # the history while it is away
    moving: asyncio.Task[bool] | None = None  # between memory and disk
    snapshots: int = 0
    nowcasts: int = 0
    progress: Progress | None = None  # as the worker last told it
    forecast_s: deque[float] = field(default_factory=lambda: deque(maxlen=64))
    track: TrackRecord = field(init=False)

    def __post_init__(self) -> None:
        self.track = TrackRecord(self.spec)

    def check_run(self, run: str | None) -> None:
        """May this run call? One that does not say which it is may.

        Raises:
            RunConflict: the job is another's.
        """
        if run not in (None, self.run):
            detail = f"job {self.id!r} belongs to another run: give each run an id of its own, or delete the job to take it over"
            raise RunConflict(detail, field=RUN_HEADER)

    def touch(self) -> None:
        self.seen_at, self.seen = time.time(), time.monotonic()

    def status(self) -> JobStatus:
        wiring = self.spec.wiring
        return JobStatus(
            job=self.id,
            wiring_hash=wiring.hash,
            parameters=wiring.size,
            neurons=wiring.neurons,
            edges=wiring.edges,
            context=self.spec.context,
            dtype=self.spec.dtype,
            forecaster=self.spec.forecaster,
            mode=self.spec.mode,
            created_at=self.created_at,
            seen_at=self.seen_at,
            steps=self.history.steps,
            history_bytes=self.history.size_bytes,
            snapshots=self.snapshots,
            nowcasts=self.nowcasts,
            progress=self.progress,
            forecast_s=median(self.forecast_s) if self.forecast_s else None,
            skill=self.track.skill(),
        )


class Jobs:
    """Jobs by tenant and id. Used on the event loop only.

    Args:
        memory: what all jobs together may take of it.
        settings: the limits.
    """

    def __init__(self, memory: Budget, *, settings: Settings) -> None:
        self._memory = memory
        self._settings = settings
        self._tenants: dict[str, Budget] = {}
        self._jobs: dict[tuple[str, str], Job] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[Job]:
        return iter(self._jobs.values())

    def of(self, tenant: str) -> list[Job]:
        return [job for job in self._jobs.values() if job.tenant == tenant]

    def get(self, tenant: str, job_id: str) -> Job:
        """The tenant's job of this name.

        Raises:
            UnknownJob: there is none, whoever else may have one.
        """
        job = self._jobs.get((tenant, job_id))
        if job is None:
            raise UnknownJob(f"job {job_id!r} is not registered here: register it and resend its snapshots", field="job")
        job.touch()
        return job

    def register(self, tenant: str, job_id: str, *, spec: JobSpec, run: str | None = None) -> tuple[Job, bool]:
        """Take in a job that has passed `limits.check_size`, or find it if it is the same; the second value says whether it is new.

        Raises:
            JobConflict: another job has this id.
            RunConflict: another run has this job.
            OutOfMemoryBudget, Busy: it does not fit beside the others.
        """
        known = self._jobs.get((tenant, job_id))
        if known is not None:
            _check_same(known.spec, spec)
            known.check_run(run)
            known.touch()
            return known, False
        memory_bytes, budget = self.needed_bytes(tenant, job_id, spec=spec), self._budget_of(tenant)
        self._memory.check_left(memory_bytes, what=_promise(spec))
        history = History(spec.wiring.size, context=spec.context, dtype=spec.dtype)
        for each in (budget, self._memory):
            each.take(memory_bytes, what=_promise(spec))
        job = Job(tenant, job_id, spec, history, budget, memory_bytes, place=self._memory, run=run)
        self._jobs[tenant, job_id] = job
        return job, True

    def needed_bytes(self, tenant: str, job_id: str, *, spec: JobSpec) -> int:
        """Memory that would be promised to a job if it were registered now; none if its id is known.

        Raises:
            OutOfMemoryBudget, Busy: it would be refused however much memory there is.
        """
        if (tenant, job_id) in self._jobs:
            return 0
        self._check_number(tenant)
        wiring = spec.wiring
        memory_bytes = history_bytes(wiring.size, context=spec.context, dtype=spec.dtype)
        memory_bytes += track_bytes(wiring.size) + ROW_BYTES * (len(wiring.blocks) + len(wiring.parameters))
        memory_bytes += sum(sys.getsizeof(parameter.name) for parameter in wiring.parameters)
        for budget in (self._memory, self._budget_of(tenant)):
            budget.check(memory_bytes, what=_promise(spec))
        self._budget_of(tenant).check_left(memory_bytes, what=_promise(spec))
        return memory_bytes

    def _check_number(self, tenant: str) -> None:
        if len(self._jobs) >= self._settings.max_jobs:
            raise Busy("the server has as many jobs as it takes", retry_after_s=60)
        if len(self.of(tenant)) >= self._settings.tenant_jobs:
            raise Busy(f"you have {self._settings.tenant_jobs} jobs, as many as may be: delete some", retry_after_s=60)

    def _budget_of(self, tenant: str) -> Budget:
        self._tenants = {name: budget for name, budget in self._tenants.items() if budget.used_bytes}
        everything = self._memory.limit_bytes + (self._settings.spill_limit if self._settings.spill else 0)
        return self._tenants.setdefault(tenant, Budget(self._settings.tenant_memory or everything))

    def remove(self, job: Job) -> None:
        """Forget a job; its memory is free once its last upload or forecast has ended."""
        del self._jobs[job.tenant, job.id]
        job.closed = True
        if not job.users:
            self._end(job)

    def _end(self, job: Job) -> None:
        if job.ended:
            return
        job.ended = True
        job.budget.give(job.memory_bytes)
        self._memory.give(job.memory_bytes - job.history.size_bytes)
        job.place.give(job.history.size_bytes)
        if job.saved is not None:
            job.saved.close()

    def enter(self, job: Job) -> None:
        """An upload or forecast of the job begins."""
        job.users += 1

    def leave(self, job: Job, *, called: bool = True) -> None:
        """It has ended.

        Args:
            job: whose.
            called: it was the worker's call, not the server's own doing.
        """
        job.users -= 1
        if called:
            job.touch()
        if job.closed and not job.users:
            self._end(job)

    @contextmanager
    def using(self, job: Job) -> Iterator[None]:
        self.enter(job)
        try:
            yield
        finally:
            self.leave(job)

    def expire(self, idle_s: float) -> list[Job]:
        """Forget the jobs nobody has called on for so long; which they were."""
        before = time.monotonic() - idle_s
        expired = [job for job in self._jobs.values() if job.seen < before and not job.users]
        for job in expired:
            self.remove(job)
        return expired


def _promise(spec: JobSpec) -> str:
    return f"a history of {spec.context} snapshots of {spec.wiring.size} {spec.dtype} values, with its wiring,"


def _check_same(known: JobSpec, given: JobSpec) -> None:
    if known.wiring.hash != given.wiring.hash:
        raise JobConflict("the job is registered with another wiring; take another id, or delete it first", field="wiring")
    for name in ("context", "dtype", "forecaster", "mode", "record"):
        ours, theirs = getattr(known, name), getattr(given, name)
        if ours != theirs:
            raise JobConflict(
                f"the job is registered with {name} {ours!r}, not {theirs!r}; take another id, or delete it", field=name
            )
