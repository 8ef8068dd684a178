"""Nowcasts: right, checked, fair, dropped when nobody wants them, and never in anybody's way."""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from typing import Any

import pytest
import torch
from prometheus_client import generate_latest
from server_kit import NOWCAST, Caller, Held, Last, Odd, Start, Walk, dense, frames, read_forecasts, refused, until

from nowcast_server.jobs.budget import Budget, Loan
from nowcast_server.nowcasting import Forecasts
from nowcast_server.service import Service
from nowcast_server.settings import Settings
from nowcast_server.web.problems import Boundary
from nowcast_server.web.routes.snapshots import FramesResponse
from protos.frames import Header


def _counted(caller: Caller, outcome: str, forecaster: str = "last") -> float:
    return float(caller.service.metrics.forecasts.labels(forecaster, outcome)._value.get())


def test_the_context_is_in_order(start: Start) -> None:
    """The forecaster would see other snapshots than were asked for, or in the order they came or of the rows they lie in."""
    caller = start(Odd(answer=lambda states, rows: states[:rows]))
    caller.register()
    for sent, asked in (((10, 20, 40, 30, 50), [30, 40, 50]), ((65, 87), [50, 65, 87])):  # a run's interval may grow
        caller.fill(*sent)
        _, forecasts = read_forecasts(caller.nowcast(context=asked, horizons=(1, 2, 3)).content)
        assert torch.equal(forecasts, torch.stack([caller.values(step) for step in asked]))
    caller = start(Last(glide_horizon=7)).filled()  # a worker may leave the horizon to the forecaster
    assert read_forecasts(caller.nowcast(horizons=()).content)[0].horizons == (7,)


def test_progress(caller: Caller) -> None:
    """Nobody could see how a run is doing."""
    progress = {"step": 30, "max_steps": 1000, "loss": 0.5, "gain": 0.7, "used": 2, "skipped": {"busy": 1}, "layers": {"fc": 0.4}}
    values = caller.values(30)
    assert caller.upload(30, frames(values, step=30, progress=progress)).status_code == 200
    assert {**caller.status()["progress"], **progress} == caller.status()["progress"]
    assert caller.upload(30, frames(values, step=30, progress={**progress, "used": 9})).status_code == 200
    assert caller.status()["progress"]["used"] == 2  # a call that is repeated tells nothing new
    last = {**progress, "step": 1000}
    assert caller.client.post("/v1/jobs/job/finish", json=last).json()["progress"]["step"] == 1000
    assert caller.status()["finished"]


def test_a_snapshot_brings_its_request_along(caller: Caller) -> None:
    """Each boundary would cost two round trips; or a snapshot have to be sent again because an older one is missing."""
    caller.register()
    caller.fill(10)
    response = caller.upload(30, frames(caller.values(30), step=30, request={"context": [10, 20, 30]}))
    assert response.json() == {"step": 30, "steps": [10, 30]}
    caller.fill(20)
    response = caller.upload(40, frames(caller.values(40), step=40, request={"context": [20, 30, 40], "horizons": [1, 5]}))
    assert response.headers["content-type"] == "application/vnd.nowcast.frames"
    assert response.content == caller.nowcast(40, horizons=(1, 5)).content


@pytest.mark.parametrize(
    ("answer", "dtype"),
    [
        (lambda states, rows: torch.full((rows, 12), float("nan")), "float32"),
        (lambda states, rows: states[-1].repeat(rows, 1) / 0, "float32"),
        (lambda states, rows: torch.full((rows, 12), 1e30), "float16"),
        (lambda states, rows: torch.zeros(rows, 11), "float32"),
        (lambda states, rows: torch.zeros(12), "float32"),
    ],
    ids=["nan", "infinity", "overflow in float16", "too short", "no rows"],
)
def test_bad_forecasts_are_never_sent(start: Start, answer: Any, dtype: str) -> None:
    """A broken forecaster would poison a training run."""
    caller = start(Odd(answer=answer)).filled()
    refused(caller.nowcast(dtype=dtype), 500, "bad_forecast")
    assert _counted(caller, "bad_forecast") == 1
    assert caller.service.forecasts.used_bytes == 0
    assert not caller.entry.history.in_use


def test_a_forecaster_that_raises(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    """A bug in a forecaster would end the device thread, or show the client the server's insides; want of memory look like one."""
    caller = start(Last(errors=[ZeroDivisionError("secret detail"), torch.OutOfMemoryError("CUDA out of memory")])).filled()
    response = caller.nowcast()
    refused(response, 500, "internal")
    assert "secret" not in response.text
    (record,) = [record for record in caplog.records if record.message == "call failed"]
    assert vars(record)["job"] == "job"
    assert record.exc_info is not None
    assert _counted(caller, "internal") == 1
    refused(caller.nowcast(), 507, "out_of_memory_budget")
    assert caller.nowcast().status_code == 200


@pytest.mark.parametrize("working", [0, 5000])
def test_forecast_memory(start: Start, working: int) -> None:
    """Forecasts in flight, or what forecasters work in, would be memory nobody set aside: a few jobs would end the server."""
    row, held = 12 * 4, Held(working=working)
    caller = start(held, forecast_memory=5 * row + working).filled()
    refused(caller.nowcast(horizons=range(1, 7)), 507, "out_of_memory_budget")
    other = caller.as_job("other").filled()
    with held.making(caller), ThreadPoolExecutor(1) as pool:
        second = pool.submit(other.nowcast, horizons=range(1, 5))
        until(lambda: caller.service.device.waiting == 1)
        assert caller.service.forecasts.used_bytes == 2 * row + working  # what waits has none
        held.released.set()
        assert second.result().status_code == 200
    until(lambda: caller.service.forecasts.used_bytes == 0)
    assert caller.nowcast(horizons=range(1, 6)).status_code == 200


def test_memory_of_weights_is_not_waited_for(start: Start) -> None:
    """A job would be told for ever to come again for memory that the forecasters' own weights have."""
    one = 12 * 4
    refused(start(Last(weights_bytes=5000), forecast_memory=5000 + one - 1).register(), 507, "out_of_memory_budget")
    caller = start(Last(weights_bytes=5000), forecast_memory=5000 + one).filled()
    assert caller.nowcast(horizons=(1,)).status_code == 200
    problem = refused(caller.nowcast(horizons=(1, 2)), 507, "out_of_memory_budget")
    assert problem["limit_bytes"] == one
    figures = caller.client.get("/metrics").text.splitlines()
    assert 'nowcast_memory_bytes{use="forecasts"} 5000.0' in figures
    assert f'nowcast_memory_limit_bytes{{use="forecasts"}} {5000.0 + one}' in figures


@pytest.mark.parametrize("leaves", ["deadline", "hangs up"])
def test_a_forecast_that_nobody_wants_is_not_begun_or_ends(listen: Start, leaves: str) -> None:
    """The device would be busy for minutes with what nobody waits for, and everybody else would wait for it."""
    held, walk = Held(), Walk()
    caller = listen(held).filled()
    with held.making(caller):
        _leave(caller, leaves, lambda: caller.service.device.waiting == 1)
        until(lambda: caller.service.device.waiting == 0)
    assert len(held.seen) == 1
    running = listen(walk).filled()
    _leave(running, leaves, lambda: walk.begun.acquire(timeout=60))
    until(lambda: running.service.device.idle)
    assert not walk.ended
    for each in (caller, running):
        _nothing_is_held(each)
        assert _counted(each, "deadline_exceeded" if leaves == "deadline" else "gone") == 1


def test_deadline_of_a_forecast_that_goes_on(start: Start) -> None:
    """A caller would wait for a forecast beyond the time it gave; or its memory would stay promised."""
    held = Held()
    caller = start(held).filled()
    refused(caller.nowcast(deadline_s=0.1), 504, "deadline_exceeded")
    assert caller.entry.history.in_use
    assert caller.service.forecasts.used_bytes > 0
    held.released.set()
    _nothing_is_held(caller)


def _leave(caller: Caller, how: str, begun: Callable[[], object]) -> None:
    """Ask for a nowcast, and give up when it has begun, or after a moment."""
    if how == "deadline":
        refused(caller.nowcast(deadline_s=0.1), 504, "deadline_exceeded")
    else:
        with caller.connect() as hasty:
            hasty.sendall(NOWCAST)
            until(begun)


def _nothing_is_held(caller: Caller) -> None:
    until(lambda: caller.service.forecasts.used_bytes == 0)
    until(lambda: not caller.entry.history.in_use)


def test_delete_during_a_forecast(start: Start) -> None:
    """A job deleted while it is forecast would take its history away from under the forecaster, or keep its memory."""
    held = Held()
    caller = start(held).filled()
    with held.making(caller):
        assert caller.client.delete("/v1/jobs/job").status_code == 204
        assert caller.service.histories.used_bytes > 0
    until(lambda: caller.service.histories.used_bytes == 0)


def test_a_busy_forecast_is_in_nobodys_way(listen: Start) -> None:
    """A forecast that never leaves Python would hold the event loop up for as long as it runs."""
    enough = threading.Event()

    def busy(states: torch.Tensor, rows: int) -> torch.Tensor:
        end = time.perf_counter() + 120
        while time.perf_counter() < end and not enough.is_set():
            pass
        assert enough.is_set()
        return states[-1].repeat(rows, 1)

    caller = listen(Odd(answer=busy), wiring=dense(100, 100))
    other = caller.as_job("other")
    for each in (caller, other):
        each.filled()
    with ThreadPoolExecutor(1) as pool:
        nowcast = pool.submit(caller.nowcast)
        until(lambda: not caller.service.device.idle)
        for call in range(1, 6):
            assert caller.client.get("/livez").status_code == 200
            assert other.upload(30 + 10 * call).status_code == 200
        enough.set()
        assert nowcast.result().status_code == 200


def test_a_client_that_fetches_too_slowly(caplog: pytest.LogCaptureFixture) -> None:
    """A client that takes nothing would hold the memory of its forecasts for as long as its line could take for all of them; or
    would be logged and counted as a failure of the server.
    """
    forecasts = Forecasts(Header("forecasts", "float32", (1, 10), 30, (1,)), torch.zeros(1, 10), 0.0)
    service = Service(Settings(), forecasters={})
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        response = FramesResponse(
            forecasts, held=AsyncExitStack(), limit_s=lambda moved: 1.0 if moved < 50 else 60.0, sent=lambda _: None
        )
        await response(scope, receive, send)

    async def send(message: Any) -> None:
        sent.append(message)
        await asyncio.sleep(120.0 if len(sent) == 2 else 0.0)

    with caplog.at_level("INFO"):
        asyncio.run(Boundary(app, service=service)({"type": "http", "method": "POST", "path": "/v1"}, None, send))  # type: ignore[arg-type]
    assert sent[0]["type"] == "http.response.start"
    assert sent[-1].get("more_body")  # uvicorn closes a connection whose answer was not completed
    assert [record.message for record in caplog.records] == ["client disconnected"]
    assert b"nowcast_errors_total{" not in generate_latest(service.metrics.registry)


def test_one_tenant_has_half_of_the_memory(start: Start) -> None:
    """A tenant that does not fetch its forecasts would take the memory of everybody else's."""
    woken = list[int]()
    memory = Budget(100, share=0.5, on_return=lambda: woken.append(memory.used_bytes))
    first, second, third = (Loan(memory, tenant="greedy", size_bytes=30) for _ in range(3))
    assert first.begin()
    assert not second.begin()
    assert Loan(memory, tenant="other", size_bytes=60).begin()  # a single one may have more than its share
    second.end()
    assert not second.begin()  # nobody needs it any more
    first.hold()
    first.end()
    assert not woken
    first.end()
    assert woken == [60]
    assert third.begin()
