"""Registrations of many blocks: one at a time, tenants in turn, and their bodies in a budget."""

import asyncio
import json
from typing import Any

import pytest
from server_kit import Last, Start, refused

from nowcast_server.jobs.budget import Budget
from nowcast_server.jobs.registrations import LARGE_BYTES, Registrations
from protos.wiring import Wiring

LARGE = LARGE_BYTES + 1


def test_tenants_take_turns() -> None:
    """One tenant's forty wirings of megabytes would keep another's small one waiting for all of them."""

    async def run() -> list[str]:
        line, order, begin = Registrations(Budget(100 * LARGE)), list[str](), asyncio.Event()

        async def one(tenant: str) -> None:
            async with line.reading(tenant, LARGE):
                await begin.wait()
                await asyncio.sleep(0)
                order.append(tenant)

        tasks = [asyncio.create_task(one("many")) for _ in range(10)]
        await asyncio.sleep(0.01)
        tasks += [asyncio.create_task(one("one")), asyncio.create_task(one("two"))]
        await asyncio.sleep(0.01)
        begin.set()
        await asyncio.gather(*tasks)
        assert not line._tenants
        return order

    assert set(asyncio.run(run())[:4]) >= {"one", "two"}


def test_whoever_comes_between_two_turns_waits() -> None:
    """A tenant that keeps sending would pass its own that wait, and stand in the line of turns several times."""

    async def run() -> list[str]:
        line, order = Registrations(Budget(100 * LARGE)), list[str]()

        async def read(*names: str) -> None:
            for name in names:
                async with line.reading("many", LARGE):
                    order.append(name)
                    await asyncio.sleep(0)

        await asyncio.gather(read("first", "third"), read("second"))
        return order

    assert asyncio.run(run()) == ["first", "second", "third"]


def test_a_large_registration(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too early, its memory would be taken all the same, or never be given back; or several be read at once, at thirty times their
    size.
    """
    caller = start(max_registration=8 * LARGE)
    blocks = [[2, index % 5, 1, index % 5, 1, 1, 0, index, 1, 1, 1, 0] for index in range(2000)]
    spec = {"wiring": {"parameters": [["w", [2000]]], "neurons": 5, "blocks": blocks}, "forecaster": "last"}
    body = json.dumps(spec).encode()
    assert len(body) > LARGE_BYTES

    def put(job: str) -> Any:
        return caller.client.put(f"/v1/jobs/{job}", content=body, headers={"content-type": "application/json"})

    read = Wiring.from_dict

    def in_turn(data: Any) -> Wiring:
        assert caller.service.registrations._turn.locked()
        return read(data)

    monkeypatch.setattr(Wiring, "from_dict", in_turn)
    for index in range(5):
        assert put(f"job-{index}").status_code == 201
    bodies = caller.service.registrations._bodies
    taken = bodies.limit_bytes
    assert bodies.lend("anonymous", taken)
    refused(put("late"), 429, "busy")
    bodies.give("anonymous", taken)
    assert put("late").status_code == 201


def test_a_forecast_that_would_take_too_long(start: Start) -> None:
    """A worker would train for hours before its first nowcast is stopped, and each of them hold up others."""
    caller = start(Last(seconds=301.0))
    assert "300 s" in refused(caller.register(), 413, "too_large", "wiring.blocks")["detail"]
    assert start(Last(seconds=299.0)).register().status_code == 201
