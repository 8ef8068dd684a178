"""Forecasts against the future they spoke of: what counts, what does not, and what it may take."""

import pytest
import torch
from server_kit import Odd, Start, dense, frames

from nowcast_server.jobs import skill
from nowcast_server.jobs.skill import KEPT, SAMPLE, TrackRecord, track_bytes
from protos.messages import JobSpec

INTERVAL = 10


def track(size: int = 4) -> TrackRecord:
    """Of a job with contexts of three states."""
    return TrackRecord(JobSpec(wiring=dense(1, size), context=3, forecaster="nino"))


def state(value: float, size: int = 4) -> torch.Tensor:
    return torch.full((size,), value)


def made(record: TrackRecord, step: int = 30, *, horizons: tuple[int, ...] = (1, 2)) -> None:
    """From the states 1, 2, 4: the line goes on to 16/3, 41/6, ..., and the mean is 7/3; `nino` says 5 + horizon."""
    forecasts = {horizon: state(5.0 + horizon) for horizon in horizons}
    record.made(step, [state(1), state(2), state(4)], forecasts, interval=INTERVAL)


def test_snapshots_need_not_come_on_the_dot() -> None:
    """A run whose interval grows would never be scored; or a forecast would be, against weights of long after it."""
    record = track()
    made(record, horizons=(1,))
    assert record.came(34, state(6)) == []
    assert dict(record.came(37, state(6)))["nino"] == 1.0
    made(record, 60, horizons=(1,))
    assert record.came(95, state(6)) == []
    assert record.came(70, state(6)) == []


def test_memory_stays_bounded() -> None:
    """A run that asks for far horizons would fill the server with forecasts for a future that is far away."""
    record = track()
    for step in range(30, 30 + INTERVAL * 20, INTERVAL):
        made(record, step, horizons=(30, 31, 32))
        assert len(record._waiting) <= KEPT
    assert {waiting.step for waiting in record._waiting} == {30, 40}  # the oldest are nearest to their future
    held = sum(row.nbytes for waiting in record._waiting for row in (waiting.last, *waiting.forecasts.values()))
    assert held <= track_bytes(4)
    made(record, 400, horizons=(1,))
    assert record.skill() == {}
    record.forget()
    assert not record._waiting


def test_a_large_network_is_judged_by_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten forecasts of a billion parameters would not fit beside their own history."""
    size = 3 * SAMPLE + 1
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(size, generator=generator).cumsum(0) for _ in range(4)]
    scores = []
    for values in (SAMPLE, size):
        monkeypatch.setattr(skill, "SAMPLE", values)
        with torch.device("meta"):  # as of a script that makes a GPU the default
            record = track(size)
        record.made(30, states[:3], {1: states[2].lerp(states[3], 0.3)}, interval=INTERVAL)
        (waiting,) = record._waiting
        assert waiting.last.numel() == values
        assert not waiting.last.untyped_storage().nbytes() > 4 * values
        scores.append(dict(record.came(40, states[3])))
    assert scores[0] == pytest.approx(scores[1], rel=0.02)
    assert scores[0]["nino"] == pytest.approx(0.3)


def test_a_job_shows_its_skill(start: Start) -> None:
    """What shadow mode is for: to know what a forecaster is worth before it is used."""
    caller = start(Odd(name="nino", answer=lambda states, rows: states[-1].add(1).repeat(rows, 1)))
    caller.register(forecaster="nino")
    values = caller.values(0)

    def upload(step: int, scale: float) -> None:
        assert caller.upload(step, frames(values + scale, step=step)).status_code == 200

    for step, scale in ((10, 0.0), (20, 1.0), (30, 2.0)):
        upload(step, scale)
    assert caller.nowcast(horizons=(1, 2)).status_code == 200
    assert caller.status()["skill"] == {}
    for _ in range(3):  # an upload is sent again when its answer was lost
        upload(40, 4.0)
    status = caller.status()
    assert status["skill"] == {"1": pytest.approx({"nino": 0.5, "linear": 0.5, "average": -0.5}, abs=1e-5)}
    text = caller.client.get("/metrics").text
    assert 'nowcast_skill_count{forecaster="nino"} 1.0' in text
