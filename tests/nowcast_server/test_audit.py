"""Who registered and deleted which job."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from server_kit import Start

from nowcast_server.logs import configure_logging


@pytest.fixture
def audit_log(tmp_path: Path) -> Iterator[Path]:
    """A file of its own, though the log itself is quiet; logging is as before afterwards."""
    names = ("nowcast_server", "nowcast_server.audit", "uvicorn.error")
    before = {
        name: (logging.getLogger(name).handlers, logging.getLogger(name).propagate, logging.getLogger(name).level) for name in names
    }
    configure_logging(level="error", style="text", audit_log=tmp_path / "audit.jsonl")
    yield tmp_path / "audit.jsonl"
    for name, (handlers, propagate, level) in before.items():
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def test_registration_and_deletion_are_on_record(start: Start, audit_log: Path) -> None:
    """Nobody could tell whose job it was that is gone, or who took its place; or the record would hold secrets."""
    caller = start(tokens="a:token-of-tenant-a-0000,b:token-of-tenant-b-0000")
    caller.client.headers["authorization"] = "Bearer token-of-tenant-a-0000"
    assert caller.register().status_code == 201
    assert caller.register().status_code == 200
    assert caller.client.delete(f"/v1/jobs/{caller.job}").status_code == 204
    assert caller.client.delete(f"/v1/jobs/{caller.job}").status_code == 404
    lines = [json.loads(line) for line in audit_log.read_text().splitlines()]
    assert [(line["message"], line["tenant"], line["job"]) for line in lines] == [
        ("job registered", "a", caller.job),
        ("job deleted", "a", caller.job),
    ]
    assert all(line["time"] for line in lines)
    assert "token-of" not in audit_log.read_text()
