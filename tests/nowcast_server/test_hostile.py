"""Every input in tests/hostile is refused as it should be, and nobody notices."""

import json
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from server_kit import Caller, Last, Start, answer, dense, read_forecasts, request
from waiting import until

FOLDER = Path(__file__).parent.parent / "hostile"
INPUTS = {path.stem: tomllib.loads(path.read_text()) for path in sorted(FOLDER.glob("*.toml"))}


def _request(hostile: dict[str, Any]) -> bytes:
    if "raw" in hostile:
        return str(hostile["raw"]).encode("latin-1")
    body = bytes.fromhex(hostile["body_hex"]) if "body_hex" in hostile else hostile.get("body", "").encode()
    body += bytes.fromhex(hostile.get("repeat", "")) * hostile.get("times", 0)
    return request(hostile["method"], hostile["path"], body, **hostile["headers"])


@pytest.fixture(scope="module")
def victim(listen_module: Start) -> Iterator[Caller]:
    caller = listen_module(Last(max_horizon=40), wiring=dense()).as_job("victim").filled()
    yield caller
    _, forecasts = read_forecasts(caller.nowcast(30, (1,)).content)
    assert torch.equal(forecasts[0], caller.values(30))  # its history is what was sent
    errors = caller.service.metrics.errors
    assert errors.labels("internal")._value.get() == 0
    until(lambda: not caller.entry.history.in_use and caller.service.forecasts.used_bytes == 0)  # once the answer has gone


@pytest.mark.parametrize("name", INPUTS)
def test_hostile_input(victim: Caller, name: str) -> None:
    """This attack, named in its file, would succeed."""
    hostile = INPUTS[name]
    before, used_bytes = victim.status(), victim.service.histories.used_bytes
    with victim.connect() as connection:
        with suppress(OSError):  # the server may have heard enough; its answer may still be there
            connection.sendall(_request(hostile))
        response, body = answer(connection)
    assert response.status == hostile["status"], (hostile["note"], body)
    for member in {"code", "field"} & hostile.keys():
        assert json.loads(body)[member] == hostile[member], (hostile["note"], body)
    after = victim.status()
    for status_ in (before, after):
        status_.pop("seen_at")
    assert after == before, hostile["note"]
    assert victim.service.histories.used_bytes == used_bytes
    assert len(victim.service.jobs) == 1
    assert victim.client.get("/readyz").status_code == 200
