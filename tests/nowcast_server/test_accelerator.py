"""A device's memory, with the CPU in its place: what is uploaded, what is kept, and what becomes of a job when it is short."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from server_kit import Caller, Held, Last, Start, frames, read_forecasts, refused, until

from nowcast_server import accelerator
from nowcast_server.accelerator import Accelerator, Reservation
from nowcast_server.device import choose_device
from nowcast_server.jobs.history import Context

CPU = torch.device("cpu")
ROW_BYTES = 4 * 10


def begun(device: Accelerator, *serials: int, working_bytes: int = 0) -> Reservation | None:
    rows = tuple(torch.full((10,), float(serial)) for serial in serials)
    reservation = Reservation(device, Context(serials[-1], serials, tuple(range(len(serials))), rows), working_bytes)
    return reservation if reservation.begin() else None


def forecast(device: Accelerator, *serials: int, working_bytes: int = 0) -> int:
    """Snapshots uploaded for a forecast from these; checks that they are the right ones."""
    before, reservation = device.uploads, begun(device, *serials, working_bytes=working_bytes)
    with reservation.states() as states:
        assert [int(state[0]) for state in states] == list(serials)
    reservation.end()
    return device.uploads - before


def test_snapshots_make_room_for_others() -> None:
    """Jobs that rest would keep the memory of the device from those that train, or running ones lose their snapshots."""
    device = Accelerator(CPU, limit_bytes=7 * ROW_BYTES)
    forecast(device, 1, 2, 3)
    forecast(device, 11, 12, 13)
    assert forecast(device, 2, 3, 4) == 1  # 1 went, which was used longest ago
    assert forecast(device, 11, 12, 13, working_bytes=4 * ROW_BYTES) == 0
    assert device.memory.used_bytes == 3 * ROW_BYTES  # the others made room for what it worked in
    assert forecast(device, 2, 3, 4) == 3


def test_a_large_device_keeps_so_many_snapshots_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small networks never fill it: each nowcast would take longer than the one before, and the host's memory grow for ever."""
    monkeypatch.setattr(accelerator, "MOST", 8)
    device = Accelerator(CPU, limit_bytes=2**40)
    for first in range(100):
        assert forecast(device, first, first + 1, first + 2) == (3 if first == 0 else 1)
        assert len(device.kept) <= 8
    assert device.memory.used_bytes == len(device.kept) * ROW_BYTES


def test_forecasts_under_way_keep_what_they_have() -> None:
    """A forecast would find its snapshots gone, or the device be promised twice."""
    device = Accelerator(CPU, limit_bytes=7 * ROW_BYTES)
    first = begun(device, 1, 2, 3, working_bytes=ROW_BYTES)
    assert first is not None
    assert begun(device, 4, 5, 6, working_bytes=ROW_BYTES) is None
    assert begun(device, 4, 5, 6) is not None
    assert device.memory.used_bytes == 7 * ROW_BYTES
    first.end()
    first.end()
    assert device.memory.used_bytes == 3 * ROW_BYTES  # it never uploaded, and gives back once


def with_device(caller: Caller, *, limit_bytes: int = 10**6, **others: Any) -> Accelerator:
    """Give a running app a device; the CPU in its place."""
    device = Accelerator(CPU, limit_bytes=limit_bytes, **others)
    caller.service.nowcasting.accelerator = device
    return device


def test_nowcasts_go_by_the_device(start: Start) -> None:
    """Forecasts would be computed from what was on the device before, as of the last run of that name; or snapshots be uploaded
    again for each.
    """
    caller = start()
    device = with_device(caller)
    caller.filled()
    for step in (30, 40):
        if step == 40:
            caller.fill(40)
        made = read_forecasts(caller.nowcast(step, horizons=[1]).content)[1]
        assert torch.equal(made[0], caller.values(step))
    assert device.uploads == 4
    metrics = caller.client.get("/metrics").text
    assert 'nowcast_device_info{asked="auto",device="cpu"} 1.0' in metrics
    caller.service.remove(caller.entry)
    caller.register()
    for seed, step in ((1, 10), (2, 20), (3, 30)):
        caller.upload(step, frames(caller.values(seed), step=step))
    made = read_forecasts(caller.nowcast(30, horizons=[1]).content)[1]
    assert torch.equal(made[0], caller.values(3))


def test_a_short_device_is_one_jobs_answer(start: Start) -> None:
    """One network too large for the device, or one that makes it fail, would take the server down, or every job after it."""
    caller = start(fails := Last())
    with_device(caller)
    caller.filled()
    fails.errors = [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB") for _ in range(2)]
    problem = refused(caller.nowcast(), 507, "out_of_memory_budget")
    assert "Tried to allocate 9 GiB" in problem["detail"]
    assert caller.nowcast().status_code == 200
    fails.errors = [RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`") for _ in range(2)]
    refused(caller.nowcast(), 507, "out_of_memory_budget")
    fails.errors = [torch.OutOfMemoryError("memory in pieces")]
    assert caller.nowcast().status_code == 200  # once the others' snapshots are gone, there is enough
    fails.errors = [RuntimeError("a shape is wrong")]
    assert [caller.nowcast().status_code for _ in range(2)] == [500, 200]
    assert caller.client.get("/livez").status_code == 200


def test_memory_of_the_device_is_not_charged_to_the_host(start: Start) -> None:
    """A server with a device would be `busy` for want of memory that nothing takes."""
    caller = start(Last(working=10**9), forecast_memory=2000)
    refused(caller.register(), 507, "out_of_memory_budget")
    with_device(caller, limit_bytes=2 * 10**9)
    assert caller.register().status_code == 201
    caller.fill()
    assert caller.nowcast().status_code == 200
    caller.client.delete("/v1/jobs/job")
    with_device(caller, limit_bytes=10**9)
    assert "on the device" in refused(caller.register(), 507, "out_of_memory_budget")["detail"]  # now, not after hours of training
    preparing = start(Last(host=10**9), forecast_memory=2000)
    with_device(preparing)
    assert "on the device" not in refused(preparing.register(), 507, "out_of_memory_budget")["detail"]


def test_forecasts_wait_for_memory_of_the_device(start: Start) -> None:
    """Two forecasts that do not fit beside each other would fail, or the second never begin."""
    caller = start(held := Held())
    with_device(caller, limit_bytes=3 * 48 + 2 * 48 + 8)
    caller.filled()
    with held.making(caller), ThreadPoolExecutor(1) as pool:
        second = pool.submit(caller.as_job("other").filled().nowcast)
        until(lambda: caller.service.device.waiting == 1)
        held.released.set()
        assert second.result().status_code == 200


def test_a_device_that_has_failed_ends_the_server(
    start: Start, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After some CUDA errors every forecast fails until the process ends: a server would answer 500 for days, and /livez 200."""
    caller = start(fails := Last())
    service, ended = caller.service, threading.Event()
    service._on_failure = ended.set
    monkeypatch.setattr(Accelerator, "lost", lambda _: True)
    with_device(caller, on_lost=service._lost)
    caller.filled()
    fails.errors = [RuntimeError("CUDA error: an illegal memory access was encountered")]
    refused(caller.nowcast(), 503, "unavailable")
    assert ended.wait(60)
    assert "illegal memory access" in caplog.text
    for path in ("/livez", "/readyz"):
        refused(caller.client.get(path), 503, "unavailable")
    assert "nowcast_ready 0.0" in caller.client.get("/metrics").text
    refused(caller.nowcast(), 503, "unavailable")


def test_a_full_device_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server would end because training took all memory of the device it shares; or go on with one that fails for ever."""
    device, errors = Accelerator(CPU, limit_bytes=1), ["out of memory", "an illegal memory access was encountered"]

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError(f"CUDA error: {errors.pop(0)}")

    monkeypatch.setattr(torch, "ones", fail)
    assert not device.lost()
    assert device.lost()


def test_why_it_is_the_cpu_is_told(monkeypatch: pytest.MonkeyPatch, start: Start) -> None:
    """A machine whose driver is too old would be rented for its GPU, and compute on its CPU without a word."""
    monkeypatch.setattr(torch.version, "cuda", None)
    assert choose_device("auto").device == "cpu"
    assert "without CUDA" in str(choose_device("auto").note)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    chosen = choose_device("auto")
    assert chosen.device == "cpu"
    assert "driver" in str(chosen.note)
    assert choose_device("cpu").note is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto").device == "cuda"
    caller = start()
    caller.service.chosen = chosen
    info = caller.client.get("/v1/info").json()
    assert (info["device"], info["device_note"]) == ("cpu", chosen.note)
