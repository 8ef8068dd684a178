"""Metrics and logs say what happened, and nothing else."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from server_kit import TOKENS, Caller, Start, bearer, frames, token

from nowcast_server.logs import JsonLines, TextLines, configure_logging


def _samples(caller: Caller) -> dict[str, float]:
    families = text_string_to_metric_families(caller.client.get("/metrics").text)
    return {
        sample.name + "".join(f"[{value}]" for value in sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
        if not sample.name.endswith(("_bucket", "_created"))
    }


def test_metrics_and_log_tell_what_happened(caller: Caller, caplog: pytest.LogCaptureFixture) -> None:
    """Operators would look at figures that nobody counted, or not find out from the log what became of a run's snapshot."""
    with caplog.at_level("DEBUG", "nowcast_server"):
        caller.fill(10, 20, 30, 30)
        caller.upload(40, frames(caller.values(40), step=40)[:-1])
    found = {(record.message, vars(record).get("job"), str(vars(record).get("step"))) for record in caplog.records}
    assert {("snapshot", "job", "10"), ("call refused", "job", "40")} <= found
    caller.nowcast()
    caller.nowcast(90)
    samples = _samples(caller)
    expected = {
        "nowcast_uploads_total[stored]": 3,
        "nowcast_uploads_total[replayed]": 1,
        "nowcast_uploads_total[bad_frame]": 1,
        "nowcast_upload_seconds_count": 4,
        "nowcast_forecasts_total[last][made]": 1,
        "nowcast_forecasts_total[last][history_missing]": 1,
        "nowcast_forecast_seconds_count[last]": 1,
        "nowcast_queue_seconds_count": 1,
        "nowcast_queue_depth": 0,
        "nowcast_jobs": 1,
        "nowcast_memory_bytes[histories]": caller.service.histories.used_bytes,
        "nowcast_memory_bytes[forecasts]": 0,
        "nowcast_memory_limit_bytes[histories]": 8 * 2**30,
        "nowcast_errors_total[bad_frame]": 1,
        "nowcast_errors_total[history_missing]": 1,
        "nowcast_ready": 1,
    }
    assert {name: samples[name] for name in expected} == expected
    assert samples["nowcast_upload_bytes_total"] == pytest.approx(5 * len(frames(caller.values(10), step=10)), abs=60)


def test_log_lines() -> None:
    """A log line could be forged by what a client sends, or not be found by its job."""
    record = logging.makeLogRecord({"msg": "call\nrefused", "levelname": "INFO", "created": 0.0})
    record.__dict__.update(job="a", step=7, detail='say "no"\n2026 error forged=1', seconds=0.123456789, none=None)
    told, shown = 'say "no"\n2026 error forged=1', '"say \\"no\\"\\n2026 error forged=1"'
    opening = "1970-01-01T00:00:00.000+00:00 info    call\\nrefused"
    assert TextLines().format(record) == f"{opening} job=a step=7 detail={shown} seconds=0.123457"
    assert json.loads(JsonLines().format(record))["detail"] == told


@pytest.fixture
def audit_log(tmp_path: Path) -> Iterator[Path]:
    """A file of its own, though the log itself is quiet; logging is as before afterwards."""
    loggers = [logging.getLogger(name) for name in ("nowcast_server", "nowcast_server.audit", "uvicorn.error")]
    before = [(logger, logger.handlers, logger.propagate, logger.level) for logger in loggers]
    configure_logging(level="error", style="text", audit_log=tmp_path / "audit.jsonl")
    yield tmp_path / "audit.jsonl"
    for logger, handlers, propagate, level in before:
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def test_registration_and_deletion_are_on_record(start: Start, audit_log: Path) -> None:
    """Nobody could tell whose job it was that is gone, or who took its place; or the record would hold secrets."""
    caller = start(tokens=TOKENS)
    caller.client.headers.update(bearer("alice"))
    assert caller.register().status_code == 201
    assert caller.register().status_code == 200
    assert caller.client.delete(f"/v1/jobs/{caller.job}").status_code == 204
    assert caller.client.delete(f"/v1/jobs/{caller.job}").status_code == 404
    lines = [json.loads(line) for line in audit_log.read_text().splitlines()]
    assert [(line["message"], line["tenant"], line["job"]) for line in lines] == [
        ("job registered", "alice", caller.job),
        ("job deleted", "alice", caller.job),
    ]
    assert all(line["time"] for line in lines)
    assert token("alice") not in audit_log.read_text()
