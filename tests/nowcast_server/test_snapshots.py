"""Uploads: only whole, finite snapshots of the right network become visible, once each."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx2
import pytest
import torch
from server_kit import Caller, Held, Start, dense, frames, read_forecasts, refused, until

from nowcast_server.settings import Settings
from protos.frames import Header


def test_a_history_of_the_newest_snapshots(caller: Caller) -> None:
    """Snapshots would not be stored as they were sent, or only in order; a history outgrow its promise; a retry after a lost answer
    count twice; or two runs under one job id mix unnoticed.
    """
    assert caller.upload(10).json() == {"step": 10, "steps": [10]}
    caller.fill(30)
    problem = refused(caller.nowcast(), 409, "history_missing")
    assert (problem["missing"], problem["steps"]) == ([20], [10, 30])
    caller.fill(20)
    assert caller.nowcast().status_code == 200
    for step in (30, 10):
        assert caller.upload(step).json()["steps"] == [10, 20, 30]
    assert caller.status()["snapshots"] == 3
    refused(caller.upload(20, frames(caller.values(99), step=20)), 409, "snapshot_conflict", "step")
    caller.fill(40)
    problem = refused(caller.upload(10), 409, "snapshot_conflict", "step")  # too old: it would be forgotten at once
    assert problem["steps"] == [20, 30, 40]
    kept = caller.entry.history.read([20, 30, 40]).states
    assert torch.equal(torch.stack(kept), torch.stack([caller.values(step) for step in (20, 30, 40)]))


def test_bodies_of_no_declared_length(listen: Start) -> None:
    """They would be read for ever, here a header map with no end; or twenty times the data be taken in preludes."""
    caller = listen(wiring=dense(100, 100))
    caller.register()
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        yield b"\xdf\xff\xff\xff\xff"
        for _ in range(10**5):
            sent += 1
            yield b"\xa4aaaa\x00" * 100

    with suppress(httpx2.TransportError):  # the server may hang up before we have said everything
        assert caller.upload(10, endless()).status_code in {413, 422}
    assert sent < 10**5
    body = frames(caller.values(10), step=10, chunk_bytes=1)
    refused(caller.upload(10, iter([body])), 413, "too_large", "content-length")
    assert caller.steps() == []


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(start: Start, dtype: str) -> None:
    """Snapshots in half precision would not arrive bit for bit, or their NaN pass."""
    caller = start()
    caller.register(dtype=dtype)
    for step in (10, 20, 30):
        assert caller.upload(step, frames(caller.values(step, dtype), step=step)).status_code == 200
    for asked in (dtype, "float32"):
        header, forecasts = read_forecasts(caller.nowcast(dtype=asked).content)
        assert header == Header("forecasts", asked, (2, 12), 30, (1, 5))
        assert torch.equal(forecasts[1].to(forecasts.dtype), caller.values(30, dtype).to(forecasts.dtype))
    poisoned = caller.values(40, dtype)
    poisoned[11] = float("inf")
    refused(caller.upload(40, frames(poisoned, step=40)), 422, "bad_value", "layer.weight")


def test_two_uploads_of_one_step(listen: Start) -> None:
    """Two senders of one step would tear each other's values, or deadlock over the last free row."""
    caller = listen(wiring=dense(100, 100)).filled()
    first, second = threading.Event(), threading.Event()

    def slowly(mine: threading.Event, other: threading.Event, seed: int) -> Iterator[bytes]:
        body = frames(caller.values(seed), step=40, chunk_bytes=1000)
        yield body[:5000]
        mine.set()
        other.wait(0.5)
        yield body[5000:]

    with ThreadPoolExecutor(4) as pool:
        same = [pool.submit(caller.upload, 40, slowly(*order, 40)) for order in ((first, second), (second, first))]
        other = pool.submit(caller.upload, 40, slowly(threading.Event(), first, 41))
        codes = sorted(each.result().status_code for each in [*same, other])
    assert codes in ([200, 200, 409], [200, 409, 409])  # whoever came first has set the values
    assert caller.steps() == [20, 30, 40]
    assert not caller.entry.history.in_use


def test_upload_during_a_forecast(listen: Start) -> None:
    """A snapshot that comes while a forecast reads the history would change what it reads; one that finds no room be told that it
    did not come, though all of it had.
    """
    held = Held()
    caller = listen(held).filled()
    with held.making(caller), ThreadPoolExecutor(1) as pool:
        assert caller.upload(40).status_code == 200  # into the spare row; step 10 is forgotten, but still read
        assert caller.steps() == [20, 30, 40]
        caller.service.settings = Settings(upload_grace_s=0.2)
        assert refused(caller.upload(50), 429, "busy")["retry_after_s"] > 0
        caller.service.settings = Settings()
        waiting = pool.submit(caller.upload, 50)  # no row is free until the forecast is made
        assert not waiting.done()
        held.released.set()
        assert waiting.result().status_code == 200
    assert torch.equal(held.seen[0], torch.stack([caller.values(step) for step in (10, 20, 30)]))
    assert caller.steps() == [30, 40, 50]


def test_delete_during_an_upload(listen: Start) -> None:
    """A deleted job would come back half, or its memory be promised twice."""
    caller = listen()
    caller.register()
    deleted = threading.Event()

    def slowly() -> Iterator[bytes]:
        body = frames(caller.values(10), step=10)
        yield body[:60]
        deleted.wait(60)
        yield body[60:]

    with ThreadPoolExecutor(1) as pool:
        upload = pool.submit(caller.upload, 10, slowly())
        until(lambda: caller.entry.users)
        assert caller.client.delete("/v1/jobs/job").status_code == 204
        assert caller.service.histories.used_bytes > 0
        deleted.set()
        refused(upload.result(), 404, "unknown_job")
    assert caller.service.histories.used_bytes == 0


def test_a_slow_upload_is_cut_off(listen: Start) -> None:
    """A client that dribbles bytes would hold a row of the history for ever."""
    caller = listen(upload_grace_s=0.2, upload_min_rate=10**9)
    caller.register()

    def dribble() -> Iterator[bytes]:
        yield frames(caller.values(10), step=10)[:60]
        time.sleep(0.5)

    refused(caller.upload(10, dribble()), 504, "deadline_exceeded")
    assert not caller.entry.history.in_use
    caller.service.settings = Settings()
    assert caller.upload(10).status_code == 200
