"""The jobs a server knows, with their histories; memory is reserved when a job registers."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from nowcast_server.jobs.budget import Budget
from nowcast_server.jobs.course import COURSE_BYTES, Course, Places
from nowcast_server.jobs.history import History, history_bytes
from nowcast_server.jobs.skill import TrackRecord, track_bytes
from nowcast_server.settings import Settings
from protos.errors import Busy, JobConflict, OutOfMemoryBudget, RunConflict, UnknownJob
from protos.messages import RUN_HEADER, JobSpec, JobStatus, Progress

RETRY_AFTER_S: Final = 2.0
PATIENCE: Final = 2.5  # a job rests when nobody has called for so many times what lies between its snapshots
ROW_BYTES: Final = 512  # what a block of a wiring, or a parameter without its name, takes as Python objects, about


@dataclass(eq=False)
class Job:
    tenant: str
    id: str
    spec: JobSpec
    history: History
    working_bytes: int = 0  # that its forecaster takes where it computes
    host_bytes: int = 0  # that it takes on the host, if that is elsewhere
    run: str | None = None  # that registered it, if it said so
    created_at: float = field(default_factory=time.time)
    seen_at: float = field(default_factory=time.time)
    seen: float = field(default_factory=time.monotonic)
    users: int = 0  # uploads and forecasts in flight
    closed: bool = False
    finished: bool = False  # its run has said that it is over
    gap_s: float = 0.0  # between two snapshots, about
    stored: float = field(default_factory=time.monotonic)  # when the last snapshot came
    snapshots: int = 0
    nowcasts: int = 0
    progress: Progress | None = None  # as the worker last told it
    track: TrackRecord = field(init=False)
    course: Course = field(init=False)
    places: Places = field(default_factory=Places)

    def __post_init__(self) -> None:
        self.track = TrackRecord(self.spec)
        self.course = Course(self.created_at)

    @property
    def evictable_bytes(self) -> int:
        """Memory of its history, and of the forecasts that wait for their future."""
        return _evictable_bytes(self.spec)

    @property
    def step(self) -> int:
        return self.progress.step if self.progress else 0

    def tell(self, progress: Progress) -> None:
        """Hear how the run is doing."""
        self.progress = progress
        self.course.tell(progress)

    def check_run(self, run: str | None) -> None:
        """Raise RunConflict if the job is another run's; one that does not say which it is may call."""
        if run not in (None, self.run):
            detail = f"job {self.id!r} belongs to another run: give each run an id of its own, or delete the job to take it over"
            raise RunConflict(detail, field=RUN_HEADER)

    def touch(self) -> None:
        self.seen_at, self.seen = time.time(), time.monotonic()

    def arrived(self) -> None:
        now = time.monotonic()
        self.snapshots += 1
        self.gap_s, self.stored = max(now - self.stored, self.gap_s / 2), now

    def status(self) -> JobStatus:
        wiring = self.spec.wiring
        return JobStatus(
            job=self.id,
            wiring_hash=wiring.hash,
            parameters=wiring.size,
            neurons=wiring.neurons,
            edges=wiring.edges,
            **{name: getattr(self.spec, name) for name in ("context", "dtype", "forecaster", "mode", "about")},
            **{name: getattr(self, name) for name in ("created_at", "seen_at", "snapshots", "nowcasts", "progress", "finished")},
            steps=self.history.steps,
            history_bytes=0 if self.history.evicted else self.history.size_bytes,
            forecast_s=self.course.latency().get("forecast"),
            skill=self.track.skill(),
        )


class Jobs:
    """Jobs by tenant and id, in one budget; `on_evict` is told whose history was evicted. Used on the event loop only."""

    def __init__(self, memory: Budget, *, settings: Settings, on_evict: Callable[[Job], None] = lambda _: None) -> None:
        self._memory, self._settings, self._on_evict = memory, settings, on_evict
        self._jobs: dict[tuple[str, str], Job] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[Job]:
        return iter(self._jobs.values())

    def of(self, tenant: str) -> list[Job]:
        return [job for job in self if job.tenant == tenant]

    def find(self, tenant: str, job_id: str) -> Job | None:
        """The tenant's job of this name, whoever else may have one; looking at it is no call of its run."""
        return self._jobs.get((tenant, job_id))

    def get(self, tenant: str, job_id: str) -> Job:
        """The tenant's job of this name, which is called on; raises UnknownJob if there is none."""
        if (job := self.find(tenant, job_id)) is None:
            raise UnknownJob(f"job {job_id!r} is not registered: register it and resend its snapshots", field="job")
        job.touch()
        return job

    def known(self, tenant: str, job_id: str, *, spec: JobSpec, run: str | None) -> Job | None:
        """The job of this name, None if there is none. Raise JobConflict, RunConflict, or Busy if memory to restore it is short."""
        if (job := self.find(tenant, job_id)) is not None:
            _check_same(job.spec, spec)
            job.check_run(run)
            job.touch()
            self.restore(job)
            job.spec = job.spec.model_copy(update={"about": spec.about})
            job.finished = False
        return job

    @contextmanager
    def reserved(self, tenant: str, job_id: str, *, spec: JobSpec, run: str | None) -> Iterator[Job]:
        """Set the memory of a new job aside, before anything is allocated for it; the job is one of these once the context ends,
        unless that raises or another call has registered it meanwhile. OutOfMemoryBudget or Busy if no room can be made for it.
        """
        self._check_number(tenant)
        size_bytes = _evictable_bytes(spec) + _wiring_bytes(spec)
        self._take(tenant, size_bytes, spec)
        kept = False
        try:
            job = Job(tenant, job_id, spec, History(spec.wiring.size, context=spec.context, dtype=spec.dtype), run=run)
            yield job
            if self.find(tenant, job_id) is None:
                self._check_number(tenant)  # again: others have come meanwhile
                self._jobs[tenant, job_id] = job
                kept = True
        finally:
            if not kept:
                self._memory.give(tenant, size_bytes)

    def restore(self, job: Job) -> None:
        """Have the memory of an evicted history again, or raise Busy; what was in it has to be sent again."""
        if not job.history.evicted:
            return
        try:
            self._take(job.tenant, job.evictable_bytes, job.spec)
        except OutOfMemoryBudget:
            detail = "the job's history was evicted, and there is no memory to hold it again now"
            raise Busy(detail, retry_after_s=RETRY_AFTER_S) from None
        try:
            job.history.allocate()
        except BaseException:
            self._memory.give(job.tenant, job.evictable_bytes)
            raise

    def evict(self, job: Job) -> None:
        """Free the memory of a history that nobody uses now; its job goes on by sending its snapshots again."""
        if not job.history.evicted:
            job.history.evict()
            job.track.forget()
            self._memory.give(job.tenant, job.evictable_bytes)

    def finish(self, job: Job) -> None:
        """The run is over: its history is freed once its last upload or forecast has ended, its status stays."""
        job.finished = True
        if not job.closed:  # else all it had is given back already
            self._settle(job)

    def remove(self, job: Job) -> None:
        """Forget a job; its memory is free once its last upload or forecast has ended."""
        del self._jobs[job.tenant, job.id]
        job.closed = True
        self._settle(job)

    def _settle(self, job: Job) -> None:
        """Free what a job does not need any more, once nothing of it is in flight."""
        if not job.users and (job.closed or job.finished):
            self.evict(job)
            if job.closed:
                self._memory.give(job.tenant, _wiring_bytes(job.spec))

    def _take(self, tenant: str, size_bytes: int, spec: JobSpec) -> None:
        what = f"a history of {spec.context} snapshots of {spec.wiring.size} {spec.dtype} values, with its wiring,"
        for of in (tenant, None):
            self._memory.check(size_bytes, what=what, tenant=of)
            for victim in self._victims(size_bytes - self._memory.left_bytes(of), of=of, tenant=tenant):
                self.evict(victim)
                self._on_evict(victim)
            self._memory.check(size_bytes, what=what, tenant=of, now=True)
        self._memory.take(tenant, size_bytes)

    def _victims(self, lacking_bytes: int, *, of: str | None, tenant: str) -> list[Job]:
        """Jobs whose histories to evict for so many bytes: those that have rested longest; none if all together would not do. They
        are those of the tenant `of`, or of all. Those of others than `tenant`, who needs the memory, go last while they have no
        more than an equal share: nobody's histories are driven out by a tenant that registers job after job.
        """
        share = self._memory.limit_bytes / max(1, len({job.tenant for job in self}))
        resting = [job for job in self if of in (None, job.tenant) and self._rests(job)]
        resting.sort(key=lambda job: (job.tenant != tenant and self._memory.used[job.tenant] <= share, job.seen))
        chosen: list[Job] = []
        for job in resting:
            if lacking_bytes > 0:
                chosen.append(job)
                lacking_bytes -= job.evictable_bytes
        return chosen if lacking_bytes <= 0 else []

    def _rests(self, job: Job) -> bool:
        """Has nobody called on it for much longer than lies between its snapshots?"""
        if job.users or job.history.in_use or job.history.evicted:
            return False
        return job.seen <= time.monotonic() - max(self._settings.evict_idle_s, PATIENCE * job.gap_s)

    def _check_number(self, tenant: str) -> None:
        """Where there are as many jobs as may be, drop the one that was finished first, or raise Busy if none is."""
        for limit in ("tenant_jobs", "max_jobs"):
            most, jobs = getattr(self._settings, limit), self.of(tenant) if limit == "tenant_jobs" else list(self)
            if len(jobs) >= most:
                finished = [job for job in jobs if job.finished and not job.users]
                if not finished:
                    raise Busy(f"job limit reached ({limit}={most}): delete some", retry_after_s=60)
                self.remove(min(finished, key=lambda job: job.seen))

    def enter(self, job: Job) -> None:
        """An upload or forecast of the job begins, until `leave`."""
        job.users += 1

    def leave(self, job: Job) -> None:
        job.users -= 1
        job.touch()
        self._settle(job)

    @contextmanager
    def using(self, job: Job) -> Iterator[None]:
        """An upload or forecast of the job, as long as the context lasts; UnknownJob if it has gone or finished meanwhile."""
        if job.closed or job.finished:
            raise UnknownJob(f"job {job.id!r} has ended, or was deleted: register it again and resend its snapshots", field="job")
        self.enter(job)
        try:
            yield
        finally:
            self.leave(job)

    def expire(self, idle_s: float) -> list[Job]:
        """Forget the jobs nobody has called on for so long; which they were."""
        before = time.monotonic() - idle_s
        expired = [job for job in self if job.seen < before and not job.users]
        for job in expired:
            self.remove(job)
        return expired


def _evictable_bytes(spec: JobSpec) -> int:
    return history_bytes(spec.wiring.size, context=spec.context, dtype=spec.dtype) + track_bytes(spec.wiring.size)


def _wiring_bytes(spec: JobSpec) -> int:
    """Memory of a job besides what may be evicted."""
    wiring = spec.wiring
    names = sum(sys.getsizeof(parameter.name) for parameter in wiring.parameters)
    return ROW_BYTES * (len(wiring.blocks) + len(wiring.parameters)) + names + COURSE_BYTES


def _check_same(known: JobSpec, given: JobSpec) -> None:
    for name in ("wiring", "context", "dtype", "forecaster", "mode", "record"):
        ours, theirs = (spec.wiring.hash if name == "wiring" else getattr(spec, name) for spec in (known, given))
        if ours != theirs:
            raise JobConflict(f"the job is registered with {name} {ours}, not {theirs}; take another id, or delete it", field=name)
