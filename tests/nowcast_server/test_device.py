"""The device: one at a time, in fair turns, and never stuck."""

import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise

import pytest
from server_kit import until

from nowcast_server import device as device_module
from nowcast_server.device import Device, Shares
from nowcast_server.interruption import interruption_point
from protos.errors import Busy, DeadlineExceeded, Unavailable


class Clock:
    """The time, which passes as a test says."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(device_module, "time", clock)
    return clock


@pytest.mark.parametrize("jobs", [1, 7])
@pytest.mark.parametrize("at_once", [1, 40])
@pytest.mark.parametrize("bob", ["bob", "alice"])
def test_a_flood_costs_others_no_more_than_its_share(clock: Clock, jobs: int, at_once: int, bob: str) -> None:
    """A tenant, or a job, that always has long forecasts waiting would hold up another's for more than one of each, or half of
    the time.
    """
    ends = list[float]()
    device = Device()
    done = threading.Event()

    def alices(job: str) -> None:
        clock.now += 1.0
        if not done.is_set():  # as many wait as before
            device.submit(partial(alices, job), tenant="alice", job=job)

    def bobs() -> None:
        clock.now += 0.25
        ends.append(clock.now)
        if len(ends) == 40:
            done.set()
        elif at_once == 1:
            device.submit(bobs, tenant=bob, job="job")

    for index in range(21):
        device.submit(partial(alices, f"job-{index % jobs}"), tenant="alice", job=f"job-{index % jobs}")
    for _ in range(at_once):
        device.submit(bobs, tenant=bob, job="job")
    device.start()
    assert done.wait(60)
    device.stop()
    rivals = jobs if bob == "alice" else 1  # within a tenant each job has its share
    assert max(after - before for before, after in pairwise([0.0, *ends])) <= rivals + 0.25
    if at_once > 1:  # who always has something waiting gets an equal part of the device
        assert ends[-1] <= (rivals + 1) * 40 * 0.25 + rivals


def test_idling_earns_no_credit_and_old_keys_are_forgotten() -> None:
    """A job could save up time and then take the device for as long; or the book would grow with every job that ever was."""
    shares = Shares()
    shares.enter("busy", waiting=[])

    def turn(other: str) -> str:
        key = shares.order(["busy", other])[0]
        shares.serve(key)
        shares.charge(key, 0.1)
        return key

    for index in range(30_000):
        shares.enter(str(index), waiting=["busy"])
        turn(str(index))
    assert shares._clocks["busy"] > 1000  # the busy one had its turns among all the newcomers
    assert len(shares._clocks) <= 3000
    shares.enter("late", waiting=["busy"])
    assert 4 <= [turn("late") for _ in range(10)].count("late") <= 6


def test_one_jobs_work_stays_in_order_and_cancelled_work_is_never_begun() -> None:
    """A job's second nowcast would overtake its first; or the device would work for callers that are gone."""
    device, seen = Device(), []
    futures = [device.submit(partial(seen.append, index), tenant="t", job="j") for index in range(50)]
    assert all(future.cancel() for future in futures[1::3])
    assert device.waiting == 33
    device.start()
    futures[48].result(60)
    device.stop()
    assert seen == [index for index in range(50) if index % 3 != 1]


def test_limits() -> None:
    """Work would pile up without end."""
    device = Device(limit=4, tenant_limit=3, job_limit=2)
    device.submit(lambda: None, tenant="t", job="a")
    device.submit(lambda: None, tenant="t", job="a")
    with pytest.raises(Busy, match="this job"):
        device.submit(lambda: None, tenant="t", job="a")
    device.submit(lambda: None, tenant="t", job="b")
    with pytest.raises(Busy, match="your forecasts"):
        device.submit(lambda: None, tenant="t", job="c")
    device.submit(lambda: None, tenant="u", job="a")
    with pytest.raises(Busy, match="4 forecasts") as busy:
        device.submit(lambda: None, tenant="u", job="b")
    assert 1 <= busy.value.extra["retry_after_s"] <= 60
    device.stop()


def test_stopping() -> None:
    """A server that stops would hang on what waits or runs, and leave callers without an answer."""
    begun = threading.Event()

    def work() -> None:
        begun.set()
        while True:
            interruption_point()
            time.sleep(0.001)

    device = Device()
    device.start()
    running, waiting = (device.submit(call, tenant="t", job="j") for call in (work, lambda: None))
    assert begun.wait(30)
    assert not device.idle
    assert device.stop(within_s=30)
    for future in (running, waiting):
        assert isinstance(future.exception(30), Unavailable)
    assert device.idle
    with pytest.raises(Unavailable):
        device.submit(lambda: None, tenant="t", job="j")


def test_turns_pass_within_a_forecast(clock: Clock) -> None:
    """Whoever waits behind a forecast of minutes would wait for all of it."""
    device, order = Device(), list[str]()

    def work(name: str, pieces: int) -> None:
        for _ in range(pieces):
            interruption_point()
            order.append(name)
            clock.now += 1.0

    futures = [device.submit(partial(work, name, 20), tenant=name, job="j") for name in "ab"]
    futures.append(device.submit(partial(work, "c", 1), tenant="c", job="j"))
    device.start()
    for future in futures:
        future.result(30)
    device.stop()
    assert order == ["a", "b", "c", *"ab" * 19]


def test_few_forecasts_of_a_tenant_are_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every forecast that waits would be begun, and take the memory it works in."""
    monkeypatch.setattr(device_module, "TURN_S", 0.0)
    device, order = Device(), list[str]()
    most = 0

    def work() -> None:
        nonlocal most
        for _ in range(5):
            interruption_point()
            most = max(most, sum(each.begun for each in tuple(device._work)))
        order.append("done")

    futures = [device.submit(work, tenant="t", job=f"j{index}") for index in range(12)]
    device.start()
    for future in futures:
        future.result(30)
    device.stop()
    assert len(order) == 12
    assert 1 < most <= device_module.TENANT_BEGUN


def test_work_has_a_limit(clock: Clock) -> None:
    """One forecast could have the device for hours, and nobody would notice."""
    device, overdue = Device(work_limit_s=10.0), list[bool]()

    def work() -> None:
        for _ in range(100):
            overdue.append(device.overdue)
            interruption_point()
            clock.now += 3.0

    device.start()
    assert isinstance(device.submit(work, tenant="t", job="j").exception(30), DeadlineExceeded)
    assert overdue == [False, False, False, False, True]
    assert not device.overdue
    assert device.submit(lambda: 7, tenant="t", job="j").result(30) == 7
    device.stop()


class Large:
    """Stands for the snapshots that a forecast holds."""


@pytest.mark.parametrize("ends", ["made", "failed", "interrupted", "cancelled"])
def test_what_work_holds_is_let_go_without_a_collection(ends: str) -> None:
    """Deleted histories and fetched forecasts would stay in memory until some collection: gigabytes beyond every budget."""
    device, large = Device(work_limit_s=0.0 if ends == "interrupted" else 60.0), Large()
    gone = weakref.ref(large)

    def call(held: Large) -> Large:
        interruption_point()
        if ends == "failed":
            raise ValueError(ends)
        return held

    gc.collect()
    gc.disable()
    try:
        future = device.submit(partial(call, large), tenant="t", job="j")
        if ends == "cancelled":
            device.cancel(future)
        device.start()
        until(future.done)
        del future, large
        until(lambda: gone() is None)
    finally:
        gc.enable()
    device.stop()


def test_hammering() -> None:
    """Submitting and cancelling from many threads would lose work or count wrongly."""
    device, done = Device(), list[int]()
    device.start()

    def hammer(thread: int) -> None:
        for index in range(200):
            work = partial(done.append, 200 * thread + index)
            future = device.submit(work, tenant=f"t{thread % 3}", job=f"j{index % 5}")
            if index % 3 == 0 and future.cancel():
                work()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(hammer, range(6)))
    until(lambda: device.idle)
    device.stop()
    assert sorted(done) == list(range(1200))
    assert device.waiting == 0
