"""Histories that go to disk when memory is full: nothing is lost, nothing is mixed up, and nothing is left behind."""

import os
import resource
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from server_kit import Caller, Held, Start, dense, frames, read_forecasts, refused, until

from nowcast_server.forecasters import load_forecaster
from nowcast_server.jobs.registry import Job
from nowcast_server.jobs.saved import Saved
from nowcast_server.running import allow_open_files
from protos.messages import JobSpec

WIRING = dense(500, 1000)
SPEC = JobSpec(wiring=WIRING, context=3, interval=10, forecaster="last")
HISTORY = 4 * 4 * WIRING.size
STEPS = (10, 20, 30)


def memory_for(start: Start, *, jobs: int, spilled: int) -> int:
    """A budget with room for so many jobs, and the bookkeeping of so many more."""
    whole = start().service.jobs.needed_bytes("anyone", "job", spec=SPEC)
    return jobs * whole + spilled * (whole - HISTORY)


@pytest.fixture
def tight(start: Start, tmp_path: Path) -> Callable[..., Caller]:
    """A server with memory for one job and little more, that spills to `tmp_path`."""

    def start_tight(*forecasters: Any, jobs: int = 1, spilled: int = 3, app: Start = start, **settings: Any) -> Caller:
        memory = memory_for(start, jobs=jobs, spilled=spilled)
        given = {"memory": memory, "spill": tmp_path, "spill_idle_s": 1e-6, **settings}
        return app(*forecasters, wiring=WIRING, **given)

    return start_tight


def upload(caller: Caller, step: int, seed: int, dtype: str = "float32") -> Any:
    return caller.upload(step, frames(caller.values(seed, dtype), step=step, chunk_bytes=100_000))


def fill(caller: Caller, seed: int) -> None:
    assert caller.register().status_code == 201
    for step in STEPS:
        assert upload(caller, step, seed + step).status_code == 200


def job_of(caller: Caller) -> Job:
    return next(job for job in caller.service.jobs if job.id == caller.job)


def away(caller: Caller) -> list[str]:
    return [job.id for job in caller.service.jobs if job.history.away]


def spilled_bytes(caller: Caller) -> int:
    return caller.service.spill.disk.used_bytes


def counted(caller: Caller, outcome: str) -> float:
    return float(caller.service.metrics.spills.labels(outcome)._value.get())


def nameless_files(folder: Path) -> int:
    """Files of the folder that this process has open."""
    found = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the one of the listing itself
            found += descriptor.readlink().is_relative_to(folder)
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_more_jobs_than_memory_with_the_same_forecasts(
    start: Start, tight: Callable[..., Caller], tmp_path: Path, dtype: str
) -> None:
    """With a spill a full server would refuse all the same, or forecast anything else than one with memory for all."""
    linear = load_forecaster("linear", device="cpu")

    def run(caller: Caller) -> list[torch.Tensor]:
        jobs = [caller.as_job(name) for name in "abcd"]
        for each in jobs:
            assert each.register(forecaster="linear", dtype=dtype).status_code == 201
        for step in (10, 20, 30, 40):  # in turns, so that each comes back for each snapshot
            for seed, each in enumerate(jobs):
                assert upload(each, step, 100 * seed + step, dtype).status_code == 200
        assert [each.steps() for each in jobs] == [[20, 30, 40]] * 4
        return [read_forecasts(each.nowcast(40, horizons=(1, 7)).content)[1] for each in jobs]

    spilling = tight(linear)
    assert all(map(torch.equal, run(spilling), run(start(linear, wiring=WIRING))))
    assert counted(spilling, "written") >= 12
    assert counted(spilling, "read") >= 12
    assert away(spilling)
    assert spilling.service.histories.used_bytes <= spilling.service.histories.limit_bytes
    assert list(tmp_path.iterdir()) == []  # a crash could leave nothing behind now


def test_without_a_folder_a_full_server_refuses(start: Start) -> None:
    """A server would write to a disk nobody told it to."""
    caller = start(memory=memory_for(start, jobs=1, spilled=3), spill_idle_s=1e-6, wiring=WIRING)
    fill(caller, 0)
    refused(caller.as_job("other").register(), 507, "out_of_memory_budget")
    assert not away(caller)


def test_who_rests_longest_goes_first(tight: Callable[..., Caller]) -> None:
    """A job that is about to send its next snapshot would go to disk before one that was forgotten hours ago."""
    caller = tight(jobs=3)
    jobs = {name: caller.as_job(name) for name in "abc"}
    for each in jobs.values():
        fill(each, 0)
    assert jobs["a"].status()["steps"] == list(STEPS)  # a call as well
    fill(caller.as_job("d"), 0)
    assert away(caller) == ["b"]
    assert jobs["b"].steps() == list(STEPS)  # known without a look at the disk
    assert away(caller) == ["b"]


@pytest.mark.parametrize(
    ("job", "change", "settings", "status"),
    [
        ("c", {"context": 10}, {}, 507),  # more than both jobs' histories
        ("c", {}, {"max_jobs": 2}, 429),
        ("c", {}, {"tenant_memory": 25_000_000}, 507),
        ("a", {}, {}, 200),
        ("a", {"interval": 11}, {}, 409),
    ],
)
def test_nothing_is_spilled_in_vain(
    tight: Callable[..., Caller], job: str, change: dict[str, Any], settings: dict[str, Any], status: int
) -> None:
    """Jobs would be driven out for one that does not fit even then, is refused anyway, or needs no room."""
    caller = tight(jobs=2, **settings)
    for each in "ab":
        fill(caller.as_job(each), 0)
    assert caller.as_job(job).register(**change).status_code == status
    assert not away(caller)


def test_jobs_at_work_stay(tight: Callable[..., Caller]) -> None:
    """Jobs that send a snapshot every few seconds would go to disk and come back for each."""
    caller = tight(spill_idle_s=60)
    fill(caller, 0)
    refused(caller.as_job("other").register(), 507, "out_of_memory_budget")
    assert not away(caller)


def test_nothing_is_left_of_a_job_that_is_deleted_or_expires(tight: Callable[..., Caller], tmp_path: Path) -> None:
    """The disk would fill up with histories of jobs that nobody knows any more."""
    caller = tight(idle_s=2.0)
    gone, other, last = (caller.as_job(name) for name in ("gone", "other", "last"))
    for each in (gone, other, last):
        fill(each, 0)
    assert away(caller) == ["gone", "other"]
    assert (nameless_files(tmp_path), spilled_bytes(caller)) == (2, 2 * HISTORY)
    metrics = caller.client.get("/metrics").text.splitlines()
    assert [line for line in metrics if line.startswith("nowcast_spilled")] == [
        "nowcast_spilled_jobs 2.0",
        "nowcast_spilled_bytes 1.6e+07",
    ]
    assert gone.client.delete("/v1/jobs/gone").status_code == 204
    assert (nameless_files(tmp_path), spilled_bytes(caller)) == (1, HISTORY)
    until(lambda: not len(caller.service.jobs))
    assert (nameless_files(tmp_path), spilled_bytes(caller), caller.service.histories.used_bytes) == (0, 0, 0)


@pytest.mark.parametrize("damage", ["bit", "end", "all"])
def test_what_the_disk_has_spoilt_is_asked_for_again(tight: Callable[..., Caller], damage: str) -> None:
    """A history that came back changed would be forecast from."""
    caller = tight()
    fill(caller, 0)
    fill(caller.as_job("other"), 50)
    assert away(caller) == ["job"]
    saved = job_of(caller).saved
    assert saved is not None
    _damage(saved, damage)
    lost = {"bit": [20], "end": [30], "all": [10, 20, 30]}[damage]
    problem = refused(caller.nowcast(), 409, "history_missing")
    assert problem["missing"] == lost
    assert counted(caller, "broken") == 1
    assert caller.steps() == [step for step in STEPS if step not in lost]
    for step in lost:
        assert upload(caller, step, step).status_code == 200
    assert torch.equal(read_forecasts(caller.nowcast().content)[1][0], caller.values(30))


def _damage(saved: Saved, damage: str) -> None:
    file, size = saved.file.fileno(), 4 * WIRING.size
    if damage == "bit":
        place = size + 12_345  # in the second snapshot
        (byte,) = os.pread(file, 1, place)
        os.pwrite(file, bytes([byte ^ 4]), place)
    else:
        os.ftruncate(file, 3 * size - 1 if damage == "end" else 0)


@pytest.mark.parametrize("failure", ["no folder", "no room"])
def test_a_disk_that_fails_costs_the_newcomer_alone(tight: Callable[..., Caller], tmp_path: Path, failure: str) -> None:
    """A full disk would take a history away, or the room that was promised to it."""
    caller = tight(spill=tmp_path / "spill")
    fill(caller, 0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if failure == "no folder":
        (tmp_path / "spill").rmdir()
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (WIRING.size, hard))
    try:
        refused(caller.as_job("other").register(), 507, "out_of_memory_budget")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (counted(caller, "failed"), spilled_bytes(caller), nameless_files(tmp_path)) == (1, 0, 0)
    assert torch.equal(read_forecasts(caller.nowcast().content)[1][0], caller.values(30))


def test_the_disk_has_a_limit(tight: Callable[..., Caller]) -> None:
    """Jobs would fill the disk of the machine; or fill it so far that none could come back, as none could make way."""
    caller = tight(spill_limit=2 * HISTORY)
    a, b, c = (caller.as_job(name) for name in "abc")
    for each in (a, b):
        fill(each, 0)
    refused(c.register(), 507, "out_of_memory_budget")
    for _ in range(3):
        assert away(caller) == ["a"]
        assert a.nowcast().status_code == 200
        assert away(caller) == ["b"]
        assert b.nowcast().status_code == 200
    refused(c.register(), 507, "out_of_memory_budget")


def test_as_many_files_may_be_open_as_jobs_be_spilled() -> None:
    """A server with a thousand spilled jobs would have no descriptors left to take calls with."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (500, hard))
        allow_open_files(1000)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (min(1500, hard), hard)
        allow_open_files(hard)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_folder_that_cannot_be_written_to(start: Start, tmp_path: Path) -> None:
    """The mistake would show when memory is full, days later."""
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        start(spill=tmp_path / "file")


def test_a_job_comes_back_when_there_is_room(tight: Callable[..., Caller]) -> None:
    """A job whose history cannot come back now would lose it, or be told to give up."""
    held = Held()
    caller = tight(held, spill_idle_s=0.01)
    fill(caller, 0)
    other = caller.as_job("other")
    time.sleep(0.02)
    fill(other, 50)
    assert away(caller) == ["job"]
    with ThreadPoolExecutor(1) as pool:
        nowcast = pool.submit(other.nowcast)
        assert held.begun.acquire(timeout=10)  # a forecast reads the history that would have to go
        problem = refused(upload(caller, 40, 40), 429, "busy")
        assert 0 < problem["retry_after_s"] <= 60
        refused(caller.nowcast(), 429, "busy")
        held.released.set()
        assert nowcast.result().status_code == 200
    time.sleep(0.02)
    assert upload(caller, 40, 40).status_code == 200
    assert away(caller) == ["other"]
    assert torch.equal(read_forecasts(caller.nowcast(40).content)[1][0], caller.values(40))


class Paused:
    """Reads and writes of the disk that wait to be let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.begun, self.released = threading.Event(), threading.Event()
        real = getattr(Saved, name)

        def paused(*args: Any, **options: Any) -> Any:
            self.begun.set()
            assert self.released.wait(30)
            return real(*args, **options)

        monkeypatch.setattr(Saved, name, paused)


@pytest.mark.parametrize("call", ["upload", "nowcast"])
def test_a_call_while_the_history_is_written(
    listen: Start, tight: Callable[..., Caller], monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """A snapshot would be received into memory that is about to go, or a forecast be made from it."""
    caller = tight(app=listen)
    fill(caller, 0)
    writing = Paused(monkeypatch, "write")
    with ThreadPoolExecutor(2) as pool:
        other = pool.submit(caller.as_job("other").register)
        assert writing.begun.wait(10)
        caller.service.spill._idle_s = 3600.0  # one attempt alone
        called = pool.submit(upload, caller, 40, 40) if call == "upload" else pool.submit(caller.nowcast)
        until(lambda: job_of(caller).users == 2)
        assert not called.done()
        writing.released.set()
        assert called.result().status_code == 200
        refused(other.result(), 507, "out_of_memory_budget")
    assert counted(caller, "written") == counted(caller, "read") == spilled_bytes(caller) == 0
    step = caller.steps()[-1]
    assert step == (40 if call == "upload" else 30)
    assert torch.equal(read_forecasts(caller.nowcast(step).content)[1][0], caller.values(step))


@pytest.mark.parametrize("way", ["write", "read"])
def test_a_job_deleted_on_its_way(
    listen: Start, tight: Callable[..., Caller], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, way: str
) -> None:
    """What a job that is deleted while its history moves takes would never be free again, or free while it is written to."""
    caller = tight(app=listen)
    other = caller.as_job("other")
    fill(caller, 0)
    if way == "read":
        fill(other, 50)
    moving = Paused(monkeypatch, way)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(other.register) if way == "write" else pool.submit(upload, caller, 40, 40)
        assert moving.begun.wait(10)
        assert caller.client.delete("/v1/jobs/job").status_code == 204
        assert spilled_bytes(caller) >= HISTORY
        moving.released.set()
        if way == "write":
            assert call.result().status_code == 201
        else:
            refused(call.result(), 404, "unknown_job")
    assert other.client.delete("/v1/jobs/other").status_code == 204
    assert (caller.service.histories.used_bytes, spilled_bytes(caller), nameless_files(tmp_path)) == (0, 0, 0)


def test_a_client_that_does_not_wait(
    listen: Start, tight: Callable[..., Caller], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A history whose caller's deadline passed while it was read would be half read, or read twice at once."""
    caller = tight(app=listen)
    fill(caller, 0)
    fill(caller.as_job("other"), 50)
    reading = Paused(monkeypatch, "read")
    refused(caller.nowcast(deadline_s=0.05), 504, "deadline_exceeded")
    assert job_of(caller).moving is not None
    reading.released.set()
    until(lambda: job_of(caller).moving is None)
    assert not away(caller) or away(caller) == ["other"]
    assert torch.equal(read_forecasts(caller.nowcast().content)[1][0], caller.values(30))
    assert (nameless_files(tmp_path), spilled_bytes(caller)) == (1, HISTORY)


def test_many_jobs_at_once(listen: Start, tight: Callable[..., Caller], tmp_path: Path) -> None:
    """Moves that cross would deadlock, lose a history, or give one job another's."""
    caller = tight(app=listen, jobs=2, spilled=4)
    names = "abcdef"

    def run(seed: int) -> None:
        mine = caller.as_job(names[seed])
        assert _patiently(mine.register).status_code == 201
        for step in range(10, 70, 10):
            assert _patiently(lambda step=step: upload(mine, step, 1000 * seed + step)).status_code == 200  # type: ignore[misc]
            if step >= 30:
                answer = _patiently(lambda step=step: mine.nowcast(step))  # type: ignore[misc]
                assert answer.status_code == 200, answer.text
                assert torch.equal(read_forecasts(answer.content)[1][1], mine.values(1000 * seed + step))

    with ThreadPoolExecutor(len(names)) as pool:
        for future in [pool.submit(run, seed) for seed in range(len(names))]:
            future.result(60)
    assert counted(caller, "written") >= len(names)
    assert counted(caller, "broken") == counted(caller, "failed") == 0
    for name in names:
        assert caller.client.delete(f"/v1/jobs/{name}").status_code == 204
    assert (caller.service.histories.used_bytes, spilled_bytes(caller), nameless_files(tmp_path)) == (0, 0, 0)


def _patiently(call: Callable[[], Any]) -> Any:
    """Call until there is room, as a worker does."""
    for _ in range(2000):
        answer = call()
        if answer.status_code not in {429, 507}:
            return answer
        time.sleep(0.02)
    return answer


@pytest.fixture
def tenants(tight: Callable[..., Caller]) -> Callable[..., tuple[Caller, Caller]]:
    """Alice and Bob on one tight server."""
    alice, bob = "alice-has-a-token", "bob-has-one-too-x"

    def start_for_two(**settings: Any) -> tuple[Caller, Caller]:
        caller = tight(tokens=f"alice:{alice},bob:{bob}", **settings)
        first, second = (caller.as_job("job", authorization=f"Bearer {token}") for token in (alice, bob))
        return first, second

    return start_for_two


def test_a_greedy_tenant_drives_out_its_own(tenants: Callable[..., tuple[Caller, Caller]]) -> None:
    """A tenant that registers job after job would have another's history fetched from disk for each snapshot."""
    alice, bob = tenants(jobs=2, spilled=8)
    fill(alice, 0)
    for index in range(6):
        fill(bob.as_job(f"job-{index}"), 50 * index)
        assert not job_of_tenant(alice, "alice").history.away
    assert len(away(bob)) == 5
    assert torch.equal(read_forecasts(alice.nowcast().content)[1][0], alice.values(30))


def job_of_tenant(caller: Caller, tenant: str) -> Job:
    (job,) = caller.service.jobs.of(tenant)
    return job


def test_a_tenants_limit_counts_the_disk(start: Start, tenants: Callable[..., tuple[Caller, Caller]]) -> None:
    """A tenant could have any number of bytes by having them on disk."""
    alice, bob = tenants(tenant_memory=memory_for(start, jobs=2, spilled=0))
    for name in ("a", "b"):
        fill(bob.as_job(name), 0)
    refused(bob.as_job("c").register(), 507, "out_of_memory_budget")
    assert away(bob) == ["a"]
    fill(alice, 0)
    assert bob.client.delete("/v1/jobs/a", headers=bob.headers).status_code == 204
    fill(bob.as_job("c"), 0)


def test_an_empty_history_is_spilled_too(tight: Callable[..., Caller]) -> None:
    """A job that has registered and sent nothing would hold memory for ever, or fail to come back."""
    caller = tight()
    assert caller.register().status_code == 201
    fill(caller.as_job("other"), 50)
    assert away(caller) == ["job"]
    for step in STEPS:
        assert upload(caller, step, step).status_code == 200
    assert caller.nowcast().status_code == 200
