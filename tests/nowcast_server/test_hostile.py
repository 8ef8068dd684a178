"""Every input in tests/hostile is refused as it should be, and nobody notices."""

import json
import socket
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from server_kit import Caller, Last, Start, dense, read_forecasts

from protos.wiring import Wiring

FOLDER = Path(__file__).parent.parent / "hostile"
INPUTS = {path.stem: tomllib.loads(path.read_text()) for path in sorted(FOLDER.glob("*.toml"))}


def _request(hostile: dict[str, Any]) -> bytes:
    if "raw" in hostile:
        return str(hostile["raw"]).encode("latin-1")
    body = bytes.fromhex(hostile["body_hex"]) if "body_hex" in hostile else hostile.get("body", "").encode()
    body += bytes.fromhex(hostile.get("repeat", "")) * hostile.get("times", 0)
    headers = {"host": "x", "content-length": str(len(body)), **hostile["headers"]}
    lines = [f"{hostile['method']} {hostile['path']} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def _send(caller: Caller, request: bytes) -> tuple[int, bytes]:
    url = caller.client.base_url
    with socket.create_connection((url.host, url.port or 0), timeout=60) as connection:
        with suppress(OSError):  # the server may have heard enough; its answer may still be there
            connection.sendall(request)
        response = HTTPResponse(connection)
        response.begin()
        return response.status, response.read()


@pytest.fixture(scope="module")
def victim(listen_module: Start) -> Iterator[Caller]:
    caller = listen_module(Last(max_horizon=40), wiring=dense()).as_job("victim").filled()
    yield caller
    _, forecasts = read_forecasts(caller.nowcast(30, (1,)).content)
    assert torch.equal(forecasts[0], caller.values(30))  # its history is what was sent
    errors = caller.service.metrics.errors
    assert errors.labels("internal")._value.get() == 0
    assert not caller.service.jobs.of("anonymous")[0].history.in_use
    assert caller.service.forecasts.used_bytes == 0


@pytest.mark.parametrize("name", INPUTS)
def test_hostile_input(victim: Caller, name: str) -> None:
    """This attack, named in its file, would succeed."""
    hostile = INPUTS[name]
    before, used_bytes = victim.status(), victim.service.histories.used_bytes
    status, body = _send(victim, _request(hostile))
    assert status == hostile["status"], (hostile["note"], body)
    for member in {"code", "field"} & hostile.keys():
        assert json.loads(body)[member] == hostile[member], (hostile["note"], body)
    after = victim.status()
    for status_ in (before, after):
        status_.pop("seen_at")
    assert after == before, hostile["note"]
    assert victim.service.histories.used_bytes == used_bytes
    assert len(victim.service.jobs) == 1
    assert victim.client.get("/readyz").status_code == 200


def test_large_wirings_are_read_one_at_a_time(listen: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """One tenant's registrations, megabytes of blocks on every connection, would take a server's memory and threads."""
    caller = listen()
    read, under_way, most = Wiring.from_dict, 0, 0

    def slow(data: Any) -> Wiring:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        time.sleep(0.1)
        under_way -= 1
        return read(data)

    monkeypatch.setattr(Wiring, "from_dict", slow)
    spec = {"wiring": caller.wiring.to_dict(), "context": 3, "forecaster": "last"}
    body, url = json.dumps(spec) + " " * 100_000, caller.client.base_url
    with ThreadPoolExecutor(4) as threads:
        calls = [
            threads.submit(httpx2.put, f"{url}/v1/jobs/{each}", content=body, headers={"content-type": "application/json"})
            for each in range(4)
        ]
        assert [call.result().status_code for call in calls] == [201] * 4
    assert most == 1
