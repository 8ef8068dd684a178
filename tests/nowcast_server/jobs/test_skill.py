"""Forecasts against the future they spoke of: what counts, what does not, and what it may take."""

import pytest
import torch
from server_kit import Caller, Odd, Start, dense

from nowcast_server.jobs import skill
from nowcast_server.jobs.skill import KEPT, SAMPLE, TrackRecord, track_bytes
from protos.messages import JobSpec, Outcome

INTERVAL = 10


def track(size: int = 4) -> TrackRecord:
    """Of a job with contexts of three states."""
    return TrackRecord(JobSpec(wiring=dense(1, size), context=3, interval=INTERVAL, forecaster="nino"))


def state(value: float, size: int = 4) -> torch.Tensor:
    return torch.full((size,), value)


def made(record: TrackRecord, step: int = 30, *, horizons: tuple[int, ...] = (1, 2)) -> None:
    """From the states 1, 2, 4: the line goes on to 16/3, 41/6, ..., and the mean is 7/3; `nino` says 5 + horizon."""
    record.made(step, [state(1), state(2), state(4)], {horizon: state(5.0 + horizon) for horizon in horizons})


def skipped(step: int = 30) -> Outcome:
    return Outcome(step=step, outcome="skipped")


def test_scores_are_those_of_the_formula() -> None:
    """A skill that is not 1 - L1(forecast, truth) / L1(last, truth) would praise the wrong forecaster."""
    record = track()
    made(record)
    assert record.told(skipped()) == []
    scores = dict(record.came(40, state(6)))
    assert scores == pytest.approx({"nino": 1.0, "linear": 1 - (6 - 16 / 3) / 2, "average": 1 - (6 - 7 / 3) / 2})
    record.came(50, state(9))
    assert record.skill()["1"] == pytest.approx(scores)
    assert record.skill()["2"] == pytest.approx({"nino": 1 - 2 / 5, "linear": 1 - (9 - 41 / 6) / 5, "average": 1 - (9 - 7 / 3) / 5})
    made(record, 60, horizons=(1,))
    record.told(skipped(60))
    record.came(70, state(5))
    assert record.skill()["1"]["nino"] == pytest.approx((1.0 + 0.0) / 2)


def test_a_jump_makes_another_future() -> None:
    """A forecast measured against weights that a jump has moved would be blamed for the jump."""
    record = track()
    made(record, horizons=(1, 9))
    record.told(skipped())
    made(record, 60)
    assert record.came(70, state(6)) == []  # nobody knows yet whether this is the run's future
    record.told(Outcome(step=60, horizon=1, outcome="accepted"))
    for step in range(80, 140, INTERVAL):
        assert record.came(step, state(6)) == []
    assert record.skill() == {}


def test_after_a_rejected_jump_the_future_comes_later() -> None:
    """The steps that a rollback undid would count as training, and every forecast would seem to be too slow."""
    record = track()
    made(record)
    assert record.came(40, state(100)) == []  # of the jump that is going to be undone
    record.told(Outcome(step=30, horizon=1, outcome="rejected", cost_steps=13))
    assert record.came(50, state(100)) == []
    assert dict(record.came(53, state(6)))["nino"] == 1.0
    assert dict(record.came(63, state(7)))["nino"] == 1.0


def test_what_came_before_the_outcome_counts_once_it_is_told() -> None:
    """Snapshots overtake outcomes on their way; their scores must be neither lost nor taken for sure."""
    record = track()
    made(record)
    assert record.came(40, state(6)) == []
    assert record.skill() == {}
    assert dict(record.told(skipped()))["nino"] == 1.0
    assert record.told(skipped()) == []
    assert list(record.skill()) == ["1"]


def test_an_outcome_that_was_never_told_leaves_no_score() -> None:
    """Then a jump may have been made, and nobody knows."""
    record = track()
    made(record, horizons=(1, 9))
    record.came(40, state(6))
    made(record, 60)
    record.told(skipped(60))
    assert record.skill() == {}
    assert dict(record.came(70, state(6)))["nino"] == 1.0
    assert record.came(120, state(6)) == []


def test_the_oldest_are_dropped_and_memory_stays_bounded() -> None:
    """A run in shadow mode would fill the server with forecasts for a future that is far away."""
    record = track()
    for step in range(30, 30 + 5 * INTERVAL * 20, 5 * INTERVAL):
        made(record, step, horizons=tuple(range(30, 46)))
        record.told(skipped(step))
        assert len(record._waiting) <= KEPT
    assert {waiting.step for waiting in record._waiting} == {step}
    assert [waiting.horizon for waiting in record._waiting] == [37, 36, 35, 34, 33, 32, 31, 30]
    held = sum(row.nbytes for waiting in record._waiting for row in (waiting.last, *waiting.forecasts.values()))
    assert held == track_bytes(4)


def test_a_large_network_is_judged_by_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten forecasts of a billion parameters would not fit beside their own history."""
    size = 3 * SAMPLE + 1
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(size, generator=generator).cumsum(0) for _ in range(4)]
    scores = []
    for values in (SAMPLE, size):
        monkeypatch.setattr(skill, "SAMPLE", values)
        record = track(size)
        record.made(30, states[:3], {1: states[2].lerp(states[3], 0.3)})
        record.told(skipped())
        (waiting,) = record._waiting
        assert waiting.last.numel() == values
        assert not waiting.last.untyped_storage().nbytes() > 4 * values
        scores.append(dict(record.came(40, states[3])))
    assert scores[0] == pytest.approx(scores[1], rel=0.02)
    assert scores[0]["nino"] == pytest.approx(0.3)


def tell(caller: Caller, step: int, outcome: str, **more: object) -> None:
    body = {"step": step, "outcome": outcome, **more}
    assert caller.client.post(f"/v1/jobs/{caller.job}/outcomes", json=body).status_code == 204


def test_a_job_shows_its_skill(start: Start) -> None:
    """What shadow mode is for: to know what a forecaster is worth before any jump is made."""
    caller = start(Odd(name="nino", answer=lambda states, rows: states[-1].add(1).repeat(rows, 1)))
    caller.register(forecaster="nino")
    values = caller.values(0)

    def upload(step: int, scale: float) -> None:
        from server_kit import frames

        assert caller.upload(step, frames(values + scale, step=step)).status_code == 200

    for step, scale in ((10, 0.0), (20, 1.0), (30, 2.0)):
        upload(step, scale)
    assert caller.nowcast(horizons=(1, 2)).status_code == 200
    tell(caller, 30, "skipped", reason="shadow")
    assert caller.status()["skill"] == {}
    for _ in range(3):  # an upload is sent again when its answer was lost
        upload(40, 4.0)
        tell(caller, 30, "skipped", reason="shadow")
    status = caller.status()
    assert status["skill"] == {"1": pytest.approx({"nino": 0.5, "linear": 0.5, "average": -0.5}, abs=1e-5)}
    assert status["outcomes"] == {"skipped": 1}
    text = caller.client.get("/metrics").text
    assert 'nowcast_skill_count{forecaster="nino"} 1.0' in text
    assert 'nowcast_outcomes_total{outcome="skipped"} 1.0' in text


def test_the_track_record_is_paid_for(caller: Caller) -> None:
    """Memory that no budget knows of is what a server dies of."""
    from nowcast_server.jobs.history import history_bytes

    size = caller.wiring.size
    assert caller.service.histories.used_bytes >= history_bytes(size, context=3, dtype="float32") + track_bytes(size)
    assert caller.client.delete("/v1/jobs/job").status_code == 204
    assert caller.service.histories.used_bytes == 0
