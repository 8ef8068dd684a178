"""The device thread: runs forecasts one at a time, off the event loop, in fair turns."""

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from typing import Any, Final, TypeVar

import torch

from nowcast_server.interruption import Cancelled, interruptible
from nowcast_server.shares import Shares
from protos.errors import BadRequest, Busy, DeadlineExceeded, Unavailable

Result = TypeVar("Result")

TURN_S: Final = 0.02
"""Work that has had the device for so long makes way at its next interruption point, if it is another's turn."""
BEGUN: Final = 32
"""Forecasts that may be under way at once, one running and the others between two turns; less than `engine.workers.CALLS`."""
TENANT_BEGUN: Final = 4
"""Of them, those of one tenant."""


@dataclass(eq=False)
class _Turns:
    """What the device knows of work under way.

    It does not refer to the work's future: an error raised at an interruption point holds frames that refer to this, and the future
    holds the error. Nobody would collect such a cycle, nor the snapshots the work holds.

    Args:
        used_s: in the turns it has had.
        go: set while it may run.
    """

    tenant: str
    job: str
    used_s: float = 0.0
    cancelled: bool = False
    go: threading.Event = field(default_factory=threading.Event)


@dataclass(eq=False)
class _Work:
    """A forecast that waits or is under way.

    Args:
        begin: called when its turn comes, with the device's lock held; False if it cannot begin yet.
    """

    turns: _Turns
    call: Callable[[], Any]
    begin: Callable[[], bool]
    future: Future[Any] = field(default_factory=Future)
    since: float = field(default_factory=time.perf_counter)


@dataclass
class _Job:
    waiting: deque[_Work] = field(default_factory=deque)
    begun: _Turns | None = None  # one at a time, so that a job's forecasts stay in order


@dataclass
class _Tenant:
    shares: Shares[str] = field(default_factory=Shares)
    jobs: dict[str, _Job] = field(default_factory=dict)

    @property
    def waiting(self) -> int:
        return sum(len(job.waiting) for job in self.jobs.values())

    @property
    def begun(self) -> int:
        return sum(job.begun is not None for job in self.jobs.values())


class Device:
    """Runs forecasts, one at a time: turns go round by tenant, then by job, and pass at interruption points.

    Args:
        limit: forecasts that may wait.
        tenant_limit, job_limit: of them, those of one tenant and of one job.
        work_limit_s: a forecast that has used the device for longer is stopped at its next interruption point.
        on_start: told how long each waited, in seconds; called with the device's lock held.
    """

    def __init__(
        self,
        *,
        limit: int,
        tenant_limit: int,
        job_limit: int,
        work_limit_s: float = math.inf,
        on_start: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._limit = limit
        self._tenant_limit = tenant_limit
        self._job_limit = job_limit
        self._work_limit_s = work_limit_s
        self._on_start = on_start
        self._lock = threading.Lock()
        self._ended = threading.Condition(self._lock)
        self._works: dict[Future[Any], _Work] = {}
        self._tenants: dict[str, _Tenant] = {}
        self._shares: Shares[str] = Shares()
        self._waiting = 0
        self._begun = 0
        self._running: _Turns | None = None
        self._turn_began = 0.0
        self._started = False
        self._stopping = False
        self._recent_s: deque[float] = deque(maxlen=32)
        self._resting: list[SimpleQueue[_Work | None]] = []  # threads that wait for work

    @property
    def waiting(self) -> int:
        """Forecasts that wait."""
        return self._waiting

    @property
    def idle(self) -> bool:
        return not self._waiting and not self._begun

    @property
    def overdue(self) -> bool:
        """Has the work that runs exceeded its limit, without passing an interruption point?"""
        with self._lock:
            turns = self._running
            return turns is not None and turns.used_s + time.perf_counter() - self._turn_began > self._work_limit_s

    def start(self) -> None:
        with self._lock:
            self._started = True
            self._dispatch()

    def stop(self, *, within_s: float = 5.0) -> bool:
        """Refuse what waits, cancel what is under way, and wait for its end; False if it does not end in time.

        The refused and the cancelled end with `Unavailable`.
        """
        with self._lock:
            self._stopping = True
            works = list(self._works.values())
            for work in works:
                self._cancel(work.turns)
        for work in works:
            future = work.future
            if not future.running() and not future.done() and future.set_running_or_notify_cancel():
                future.set_exception(_stopping())
        with self._ended:
            ended = self._ended.wait_for(lambda: not self._begun, within_s)
            for queue in self._resting:
                queue.put(None)
            return ended

    def submit(
        self, call: Callable[[], Result], *, tenant: str, job: str, begin: Callable[[], bool] = lambda: True
    ) -> "Future[Result]":
        """Have `call` run on the device.

        Args:
            call: the work; it may mark interruption points.
            tenant: whose it is,
            job: and of which job.
            begin: called when its turn comes, from any thread: takes what the work needs and returns True, or False if that cannot
                be had now. It is asked again after `wake`.

        Raises:
            Busy: too many wait already.
            Unavailable: the server stops.
        """
        work = _Work(_Turns(tenant, job), call, begin)
        with self._lock:
            if self._stopping:
                raise _stopping()
            self._check_limits(tenant, job)
            self._enqueue(work)
            self._dispatch()
        work.future.add_done_callback(self._forget)
        return work.future

    def cancel(self, future: "Future[Any]") -> None:
        """Nobody waits for this any more: what has not begun never will, what is under way ends at its next interruption point."""
        if future.cancel():
            return
        with self._lock:
            if future in self._works:
                self._cancel(self._works[future].turns)

    def wake(self) -> None:
        """What could not begin may be able to now."""
        with self._lock:
            self._dispatch()

    def retry_after_s(self) -> float:
        """When a queue like this will have emptied, about."""
        mean_s = sum(self._recent_s) / len(self._recent_s) if self._recent_s else 1.0
        return min(max(1.0, (self._waiting + self._begun) * mean_s), 60.0)

    def _check_limits(self, tenant_name: str, job_name: str) -> None:
        tenant = self._tenants.get(tenant_name, _Tenant())
        for waiting, limit, whose in (
            (self._waiting, self._limit, "forecasts"),
            (tenant.waiting, self._tenant_limit, "of your forecasts"),
            (len(tenant.jobs.get(job_name, _Job()).waiting), self._job_limit, "forecasts of this job"),
        ):
            if waiting >= limit:
                raise Busy(f"{limit} {whose} wait already", retry_after_s=self.retry_after_s())

    def _enqueue(self, work: _Work) -> None:
        tenant_name, job_name = work.turns.tenant, work.turns.job
        if tenant_name not in self._tenants:
            self._shares.enter(tenant_name, waiting=self._tenants)
            self._tenants[tenant_name] = _Tenant()
        tenant = self._tenants[tenant_name]
        if job_name not in tenant.jobs:
            tenant.shares.enter(job_name, waiting=tenant.jobs)
            tenant.jobs[job_name] = _Job()
        tenant.jobs[job_name].waiting.append(work)
        self._works[work.future] = work
        self._waiting += 1

    def _forget(self, future: "Future[Any]") -> None:
        """It is done: made, failed, or cancelled while it waited."""
        with self._lock:
            work = self._works.pop(future, None)
            tenant = self._tenants.get(work.turns.tenant) if work is not None else None
            job = tenant.jobs.get(work.turns.job) if work is not None and tenant is not None else None
            if work is not None and job is not None and work in job.waiting:
                job.waiting.remove(work)
                self._waiting -= 1
                self._tidy(work.turns)

    def _tidy(self, turns: _Turns) -> None:
        """Drop the entries of a job and a tenant that have nothing to do any more."""
        tenant = self._tenants[turns.tenant]
        job = tenant.jobs[turns.job]
        if job.begun is None and not job.waiting:
            del tenant.jobs[turns.job]
        if not tenant.jobs:
            del self._tenants[turns.tenant]
        if not self._tenants:
            self._shares = Shares()  # with nobody waiting there is nothing to be fair about

    def _dispatch(self) -> None:
        """Give the device to whoever is next, if nobody has it."""
        while self._started and self._running is None and (following := self._next()) is not None:
            if isinstance(following, _Turns):
                self._give_turn(following)
            elif following.future.set_running_or_notify_cancel():
                self._on_start(time.perf_counter() - following.since)
                self._give_turn(following.turns)
                self._hand_over(following)
            else:  # cancelled just now
                self._end(following.turns)

    def _next(self) -> _Work | _Turns | None:
        """The work to run now: to be begun, or to be continued."""
        for name in self._shares.order(self._tenants):
            tenant = self._tenants[name]
            full = self._begun >= BEGUN or tenant.begun >= TENANT_BEGUN
            for job in map(tenant.jobs.__getitem__, tenant.shares.order(tenant.jobs)):
                if job.begun is not None:
                    return job.begun
                if not full and not self._stopping and job.waiting and job.waiting[0].begin():
                    work = job.waiting.popleft()
                    job.begun = work.turns
                    self._waiting -= 1
                    self._begun += 1
                    return work
        return None

    def _give_turn(self, turns: _Turns) -> None:
        self._shares.serve(turns.tenant)
        self._tenants[turns.tenant].shares.serve(turns.job)
        self._running, self._turn_began = turns, time.perf_counter()
        turns.go.set()

    def _take_turn(self, turns: _Turns) -> None:
        """The work does not have the device any more, if it had."""
        if self._running is turns:
            seconds = time.perf_counter() - self._turn_began
            turns.used_s += seconds
            self._shares.charge(turns.tenant, seconds)
            self._tenants[turns.tenant].shares.charge(turns.job, seconds)
            self._running = None
        if not turns.cancelled:
            turns.go.clear()

    def _cancel(self, turns: _Turns) -> None:
        turns.cancelled = True
        turns.go.set()  # it needs no turn to end

    def _end(self, turns: _Turns) -> None:
        self._tenants[turns.tenant].jobs[turns.job].begun = None
        self._begun -= 1
        self._tidy(turns)
        self._ended.notify_all()

    def _hand_over(self, work: _Work) -> None:
        queue = self._resting.pop() if self._resting else None
        if queue is None:
            queue = SimpleQueue()
            threading.Thread(target=self._run, args=(queue,), name="device", daemon=True).start()
        queue.put(work)

    def _run(self, queue: "SimpleQueue[_Work | None]") -> None:
        for work in iter(queue.get, None):
            self._perform(work, queue)
            del work  # or its call would keep what it holds until there is other work

    def _perform(self, work: _Work, queue: "SimpleQueue[_Work | None]") -> None:
        result, error = None, None
        try:
            with interruptible(partial(self._interruption_point, work.turns)):
                result = work.call()
        except BaseException as raised:  # noqa: BLE001 -- whatever a forecaster raises belongs to the caller; the thread lives on
            error = _stopping() if self._stopping and isinstance(raised, Cancelled) else raised
        with self._lock:
            self._take_turn(work.turns)
            self._recent_s.append(work.turns.used_s)
            self._end(work.turns)
            self._resting.append(queue)
            self._dispatch()
        try:
            if error is not None:
                work.future.set_exception(error)
            else:
                work.future.set_result(result)
        finally:
            del work, result, error  # the error's traceback holds this frame

    def _interruption_point(self, turns: _Turns) -> None:
        """Called by the work itself.

        Raises:
            Cancelled: nobody waits for it.
            DeadlineExceeded: it has had the device for longer than any work may.
        """
        turn_s = time.perf_counter() - self._turn_began
        if not turns.cancelled and turns.used_s + turn_s > self._work_limit_s:
            raise DeadlineExceeded(f"the forecast takes longer than the {self._work_limit_s:g} s this server gives one")
        if not turns.cancelled and turn_s >= TURN_S:
            with self._lock:
                self._take_turn(turns)
                self._dispatch()
            turns.go.wait()
        if turns.cancelled:
            raise Cancelled


def _stopping() -> Unavailable:
    return Unavailable("the server is stopping", retry_after_s=5)


@dataclass(frozen=True)
class Chosen:
    """Where forecasts are made.

    Args:
        device: in torch's words.
        note: why it is the CPU although a CUDA device would have been used; None if nothing is to be said.
    """

    device: str
    note: str | None = None


CPU: Final = Chosen("cpu")


def choose_device(name: str) -> Chosen:
    """`auto` as the device it stands for: the first CUDA device, or else the CPU."""
    if name != "auto":
        return Chosen(name)
    if torch.version.cuda is None:
        return Chosen("cpu", "this torch is built without CUDA")
    if not torch.cuda.is_available():
        return Chosen("cpu", "torch finds no CUDA device: is there one, and a driver that is new enough?")
    return Chosen("cuda")


def check_device(name: str) -> None:
    """Refuse a device that this process does not have.

    Raises:
        BadRequest: it does not.
    """
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch without CUDA
        raise BadRequest(f"--device {name}: {str(error).splitlines()[0]}", field="device") from error
