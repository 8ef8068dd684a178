"""The device thread: runs forecasts one at a time, off the event loop, in fair turns."""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean
from typing import Any, Final, NamedTuple, TypeVar

import torch

from nowcast_server.interruption import Cancelled, interruptible
from protos.errors import BadRequest, Busy, DeadlineExceeded, Unavailable

Result = TypeVar("Result")

TURN_S: Final = 0.02  # work that has had the device for so long makes way at its next interruption point, if it is another's turn
BEGUN: Final = 32  # forecasts that may be under way at once, all but one between two turns; less than `engine.workers.CALLS`
TENANT_BEGUN: Final = 4  # of them, those of one tenant
SMALLEST_CHARGE_S: Final = 1e-4  # charged at least, so that work too quick to measure takes turns as well


class Shares:
    """Start-time fair queueing: each key has a clock that runs while its work does; the smallest clock goes first. A new key, or
    one back after a pause, starts where the hindmost of those who wait are: idling earns no credit, and newcomers do not push in.
    """

    def __init__(self) -> None:
        self._clocks: dict[str, float] = {}
        self._now = 0.0

    def enter(self, key: str, *, waiting: Collection[str]) -> None:
        """The key has something to do; if it is not one of those `waiting`, it had not before."""
        if key in waiting:
            return
        self._now = max(self._now, min((self._clocks.get(each, self._now) for each in waiting), default=0.0))
        # a clock that lags behind means nothing any more
        self._clocks = {each: clock for each, clock in self._clocks.items() if clock > self._now}

    def order(self, keys: Iterable[str]) -> list[str]:
        """The keys, whoever is to be served first first."""
        return sorted(keys, key=lambda each: self._clocks.get(each, self._now))

    def serve(self, key: str) -> None:
        """The key has its turn now."""
        self._now = max(self._now, self._clocks.get(key, self._now))

    def charge(self, key: str, seconds: float) -> None:
        self._clocks[key] = max(self._clocks.get(key, 0.0), self._now) + max(seconds, SMALLEST_CHARGE_S)


@dataclass(eq=False)
class _Work:
    # no reference to its future, which may hold an error, whose frames refer to this: nobody would collect such a cycle

    tenant: str
    job: str
    call: Callable[[], Any]
    begin: Callable[[], bool]  # called when its turn comes; False if it cannot begin yet
    since: float = field(default_factory=time.perf_counter)
    begun: bool = False
    used_s: float = 0.0  # in the turns it has had
    cancelled: bool = False
    go: threading.Event = field(default_factory=threading.Event)  # set while it may run

    def cancel(self) -> None:
        self.cancelled = True
        self.go.set()  # it needs no turn to end


class Device:
    """Runs forecasts, one at a time: turns go round by tenant, then by job, and pass at interruption points. So many may wait in
    all, of one tenant, and of one job. A forecast that has used the device for `work_limit_s` is stopped at its next interruption
    point. `on_start` is told the seconds each has waited; it is called with the device's lock held.
    """

    def __init__(
        self,
        *,
        limit: int = 10_000,
        tenant_limit: int = 10_000,
        job_limit: int = 10_000,
        work_limit_s: float = math.inf,
        on_start: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._limit, self._tenant_limit, self._job_limit = limit, tenant_limit, job_limit
        self._work_limit_s = work_limit_s
        self._on_start = on_start
        self._lock = threading.Lock()
        self._ended = threading.Condition(self._lock)
        self._work: dict[_Work, Future[Any]] = {}  # in the order it came
        self._shares = Shares()
        self._jobs: dict[str, Shares] = {}  # those of each tenant that has something to do
        self._running: _Work | None = None
        self._turn_began = 0.0
        self._started = False
        self._stopping = False
        self._recent_s: deque[float] = deque(maxlen=32)
        self._threads = ThreadPoolExecutor(BEGUN, thread_name_prefix="device")

    @property
    def waiting(self) -> int:
        with self._lock:
            return sum(not work.begun for work in self._work)

    @property
    def idle(self) -> bool:
        return not self._work

    @property
    def overdue(self) -> bool:
        """Has the work that runs exceeded its limit, without passing an interruption point?"""
        with self._lock:
            work = self._running
            return work is not None and work.used_s + time.perf_counter() - self._turn_began > self._work_limit_s

    def start(self) -> None:
        with self._lock:
            self._started = True
            self._dispatch()

    def stop(self, *, within_s: float = 5.0) -> bool:
        """Refuse what waits, cancel what is under way (`Unavailable`), and wait for its end; False if it takes too long."""
        with self._lock:
            self._stopping = True
            refused = [self._work.pop(work) for work in tuple(self._work) if not work.begun]
            for work in self._work:
                work.cancel()
        for future in refused:
            if future.set_running_or_notify_cancel():
                future.set_exception(_stopping())
        with self._ended:
            self._threads.shutdown(wait=False)
            return self._ended.wait_for(lambda: not self._work, within_s)

    def submit(
        self, call: Callable[[], Result], *, tenant: str, job: str, begin: Callable[[], bool] = lambda: True
    ) -> "Future[Result]":
        """Have `call` run on the device; it may mark interruption points. When its turn comes, `begin` is called from any thread:
        it takes what the work needs and returns True, or False if that cannot be had now. It is asked again after `wake`. Busy if
        too many wait already, Unavailable if the server stops.
        """
        work, future = _Work(tenant, job, call, begin), Future[Result]()

        def forget(_: "Future[Any]") -> None:  # made, failed, or cancelled while it waited
            with self._lock:
                self._end(work)

        with self._lock:
            if self._stopping:
                raise _stopping()
            self._check_limits(tenant, job)
            self._shares.enter(tenant, waiting=self._jobs)
            jobs = self._jobs.setdefault(tenant, Shares())
            jobs.enter(job, waiting={each.job for each in self._work if each.tenant == tenant})
            self._work[work] = future
            self._dispatch()
        future.add_done_callback(forget)
        return future

    def cancel(self, future: "Future[Any]") -> None:
        """Nobody waits for this any more: what has not begun never will, what is under way ends at its next interruption point."""
        if future.cancel():
            return
        with self._lock:
            for work, its in self._work.items():
                if its is future:
                    work.cancel()

    def wake(self) -> None:
        """What could not begin may be able to now."""
        with self._lock:
            self._dispatch()

    def _check_limits(self, tenant: str, job: str) -> None:
        waiting = [(work.tenant, work.job) for work in self._work if not work.begun]
        for count, limit, whose in (
            (len(waiting), self._limit, "forecasts"),
            (sum(theirs == tenant for theirs, _ in waiting), self._tenant_limit, "of your forecasts"),
            (waiting.count((tenant, job)), self._job_limit, "forecasts of this job"),
        ):
            if count >= limit:
                empty_s = len(self._work) * (fmean(self._recent_s) if self._recent_s else 1.0)  # until a queue like this is, about
                raise Busy(f"{limit} {whose} wait already", retry_after_s=min(max(1.0, empty_s), 60.0))

    def _end(self, work: _Work) -> None:
        """Drop the work, and the places of tenants that have nothing to do any more."""
        self._work.pop(work, None)
        busy = {each.tenant for each in self._work}
        self._jobs = {tenant: jobs for tenant, jobs in self._jobs.items() if tenant in busy}
        if not busy:
            self._shares = Shares()  # with nobody waiting there is nothing to be fair about
        self._ended.notify_all()

    def _dispatch(self) -> None:
        while self._started and self._running is None and (work := self._next()) is not None:
            if work.begun:
                self._give_turn(work)
            elif self._work[work].set_running_or_notify_cancel():
                work.begun = True
                self._on_start(time.perf_counter() - work.since)
                self._give_turn(work)
                self._threads.submit(self._perform, work)
            else:  # cancelled just now
                self._end(work)

    def _next(self) -> _Work | None:
        """The work to run now: to be begun, or to be continued. A job has one at a time, so that its forecasts stay in order."""
        first: dict[tuple[str, str], _Work] = {}
        for work in self._work:
            first.setdefault((work.tenant, work.job), work)
        under_way = [work.tenant for work in self._work if work.begun]
        for tenant in self._shares.order(self._jobs):
            may_begin = not self._stopping and len(under_way) < BEGUN and under_way.count(tenant) < TENANT_BEGUN
            for job in self._jobs[tenant].order(name for whose, name in first if whose == tenant):
                work = first[tenant, job]
                if work.begun or (may_begin and work.begin()):
                    return work
        return None

    def _give_turn(self, work: _Work) -> None:
        self._shares.serve(work.tenant)
        self._jobs[work.tenant].serve(work.job)
        self._running, self._turn_began = work, time.perf_counter()
        work.go.set()

    def _take_turn(self, work: _Work) -> None:
        """The work does not have the device any more, if it had."""
        if self._running is work:
            seconds = time.perf_counter() - self._turn_began
            work.used_s += seconds
            self._shares.charge(work.tenant, seconds)
            self._jobs[work.tenant].charge(work.job, seconds)
            self._running = None
        if not work.cancelled:
            work.go.clear()

    def _perform(self, work: _Work) -> None:
        result, error = None, None
        try:
            with interruptible(partial(self._interruption_point, work)):
                result = work.call()
        except BaseException as raised:  # noqa: BLE001 -- whatever a forecaster raises belongs to the caller; the thread lives on
            error = _stopping() if self._stopping and isinstance(raised, Cancelled) else raised
        with self._lock:
            future = self._work[work]
            self._take_turn(work)
            self._recent_s.append(work.used_s)
            self._end(work)
            self._dispatch()
        try:
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)
        finally:
            del work, future, result, error  # the error's traceback holds this frame

    def _interruption_point(self, work: _Work) -> None:
        """Called by the work itself; raises Cancelled if nobody waits for it, DeadlineExceeded if it has had its time."""
        turn_s = time.perf_counter() - self._turn_began
        if not work.cancelled and work.used_s + turn_s > self._work_limit_s:
            raise DeadlineExceeded(f"the forecast takes longer than the {self._work_limit_s:g} s this server gives one")
        if not work.cancelled and turn_s >= TURN_S:
            with self._lock:
                self._take_turn(work)
                self._dispatch()
            work.go.wait()
        if work.cancelled:
            raise Cancelled


def _stopping() -> Unavailable:
    return Unavailable("the server is stopping", retry_after_s=5)


class Chosen(NamedTuple):
    """Where forecasts are made, in torch's words; and why that is the CPU, where a CUDA device would have been used."""

    device: str
    note: str | None = None


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
    """Raise BadRequest if this process does not have the device, or cannot compute there."""
    try:
        torch.ones(1, device=name).sum().item()  # an old device is found here, for which this torch has no kernels
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch without CUDA
        raise BadRequest(f"--device {name}: {str(error).splitlines()[0]}", field="device") from error
