"""The device thread: forecasts run here one at a time, never on the event loop, and no job gets more than its share."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

import torch

from protos.errors import BadRequest, Busy, Unavailable

Result = TypeVar("Result")
Key = TypeVar("Key")

SMALLEST_CHARGE_S: Final = 1e-4
"""Charged at least, so that work too quick to measure takes turns as well."""


class Shares(Generic[Key]):
    """Who comes next: whoever has used the device least.

    Start-time fair queueing. Each key has a clock that runs while its work does; the smallest clock goes first. A new key, or one
    that comes back after a pause, starts where the hindmost of those who wait are: idling earns no credit, and newcomers do not
    push in.
    """

    def __init__(self) -> None:
        self._clocks: dict[Key, float] = {}
        self._now = 0.0
        self._prune_at = 1000

    def enter(self, key: Key, *, waiting: Iterable[Key]) -> None:
        """The key has something to do and had not before, unlike those `waiting`."""
        self._now = max(self._now, min((self._clocks.get(each, self._now) for each in waiting), default=0.0))
        if len(self._clocks) >= self._prune_at:  # a clock that lags behind means nothing any more
            self._clocks = {each: clock for each, clock in self._clocks.items() if clock > self._now}
            self._prune_at = 1000 + 2 * len(self._clocks)
        self._clocks[key] = max(self._clocks.get(key, 0.0), self._now)

    def first(self, keys: list[Key]) -> Key:
        """The key to serve now, of those that wait."""
        key = min(keys, key=lambda each: self._clocks.get(each, self._now))
        self._now = max(self._now, self._clocks.get(key, self._now))
        return key

    def charge(self, key: Key, seconds: float) -> None:
        self._clocks[key] = max(self._clocks.get(key, 0.0), self._now) + max(seconds, SMALLEST_CHARGE_S)


@dataclass(eq=False)
class _Work:
    tenant: str
    job: str
    call: Callable[[], Any]
    future: Future[Any] = field(default_factory=Future)
    since: float = field(default_factory=time.perf_counter)


@dataclass
class _Tenant:
    shares: Shares[str] = field(default_factory=Shares)
    jobs: dict[str, deque[_Work]] = field(default_factory=dict)


class Device:
    """A thread and the forecasts that wait for it: first by tenant, then by job, then in order.

    Args:
        limit: forecasts that may wait.
        tenant_limit, job_limit: of them, those of one tenant and of one job.
        on_start: told how long each waited, in seconds; called on the device thread.
    """

    def __init__(
        self, *, limit: int, tenant_limit: int, job_limit: int, on_start: Callable[[float], None] = lambda _: None
    ) -> None:
        self._limit = limit
        self._tenant_limit = tenant_limit
        self._job_limit = job_limit
        self._on_start = on_start
        self._changed = threading.Condition()
        self._tenants: dict[str, _Tenant] = {}
        self._shares: Shares[str] = Shares()
        self._waiting = 0
        self._running = False
        self._stopping = False
        self._recent_s: deque[float] = deque(maxlen=32)
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)

    @property
    def waiting(self) -> int:
        """Forecasts that wait."""
        return self._waiting

    @property
    def idle(self) -> bool:
        return not self._waiting and not self._running

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Drop what waits, finish what runs, and join the thread."""
        with self._changed:
            self._stopping = True
            waiting = [work for tenant in self._tenants.values() for queue in tenant.jobs.values() for work in queue]
            self._changed.notify()
        for work in waiting:
            work.future.cancel()
        if self._thread.is_alive():
            self._thread.join()

    def submit(self, call: Callable[[], Result], *, tenant: str, job: str) -> "Future[Result]":
        """Have `call` run on the device. Cancelling the future takes it out of the queue, as long as it waits.

        Raises:
            Busy: too many wait already.
            Unavailable: the server stops.
        """
        work = _Work(tenant, job, call)
        with self._changed:
            if self._stopping:
                raise Unavailable("the server is stopping", retry_after_s=5)
            self._check_limits(work)
            self._enqueue(work)
            self._changed.notify()
        work.future.add_done_callback(lambda _: self._forget(work))
        return work.future

    def retry_after_s(self) -> float:
        """When a queue like this will have emptied, about."""
        mean_s = sum(self._recent_s) / len(self._recent_s) if self._recent_s else 1.0
        return min(max(1.0, (self._waiting + self._running) * mean_s), 60.0)

    def _check_limits(self, work: _Work) -> None:
        if self._waiting >= self._limit:
            raise Busy(f"{self._limit} forecasts wait already", retry_after_s=self.retry_after_s())
        mine = self._tenants.get(work.tenant, _Tenant()).jobs
        if sum(map(len, mine.values())) >= self._tenant_limit:
            raise Busy(f"{self._tenant_limit} of your forecasts wait already", retry_after_s=self.retry_after_s())
        if len(mine.get(work.job, ())) >= self._job_limit:
            raise Busy(f"{self._job_limit} forecasts of this job wait already", retry_after_s=self.retry_after_s())

    def _enqueue(self, work: _Work) -> None:
        tenant = self._tenants.setdefault(work.tenant, _Tenant())
        if not tenant.jobs:
            self._shares.enter(work.tenant, waiting=self._waiting_tenants())
        if work.job not in tenant.jobs:
            tenant.shares.enter(work.job, waiting=tenant.jobs)
            tenant.jobs[work.job] = deque()
        tenant.jobs[work.job].append(work)
        self._waiting += 1

    def _waiting_tenants(self) -> list[str]:
        return [name for name, tenant in self._tenants.items() if tenant.jobs]

    def _remove(self, work: _Work) -> None:
        tenant = self._tenants[work.tenant]
        tenant.jobs[work.job].remove(work)
        self._waiting -= 1
        if not tenant.jobs[work.job]:
            del tenant.jobs[work.job]

    def _forget(self, work: _Work) -> None:
        if work.future.cancelled():
            with self._changed:
                if work in self._tenants.get(work.tenant, _Tenant()).jobs.get(work.job, ()):
                    self._remove(work)

    def _next(self) -> _Work | None:
        with self._changed:
            self._running = False
            while not self._waiting and not self._stopping:
                self._tenants, self._shares = {}, Shares()  # with nobody waiting there is nothing to be fair about
                self._changed.wait()
            if self._stopping:
                return None
            name = self._shares.first(self._waiting_tenants())
            tenant = self._tenants[name]
            work = tenant.jobs[tenant.shares.first(list(tenant.jobs))][0]
            self._remove(work)
            self._running = True
            return work

    def _run(self) -> None:
        while (work := self._next()) is not None:
            if work.future.set_running_or_notify_cancel():
                self._perform(work)

    def _perform(self, work: _Work) -> None:
        start = time.perf_counter()
        self._on_start(start - work.since)
        try:
            result = work.call()
        except BaseException as error:  # noqa: BLE001 -- whatever a forecaster raises belongs to the caller; the thread lives on
            self._charge(work, time.perf_counter() - start)
            work.future.set_exception(error)
        else:
            self._charge(work, time.perf_counter() - start)
            work.future.set_result(result)

    def _charge(self, work: _Work, seconds: float) -> None:
        with self._changed:
            self._recent_s.append(seconds)
            self._shares.charge(work.tenant, seconds)
            self._tenants[work.tenant].shares.charge(work.job, seconds)


def pick_device(name: str) -> str:
    """`auto` as the device it stands for."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def check_device(name: str) -> None:
    """Refuse a device that this process does not have.

    Raises:
        BadRequest: it does not.
    """
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch without CUDA
        raise BadRequest(f"--device {name}: {str(error).splitlines()[0]}", field="device") from error
