"""`nowcast-server run --record`: what is kept of which job."""

from pathlib import Path

import numpy as np
import pytest
from server_kit import Start

from nowcast_server.metatrain.store import TrajectoryWriter, trajectories

OUTCOME = {"step": 30, "horizon": 5}


def test_only_jobs_that_allow_it_are_recorded(start: Start, tmp_path: Path) -> None:
    """Weights are a team's property: keeping them unasked would be theft."""
    caller = start(record=tmp_path)
    willing, other = caller.as_job("willing"), caller.as_job("other")
    willing.register(record=True)
    other.register()
    willing.fill(10, 20, 30, 40)
    other.fill(10, 20, 30, 40)
    (run,) = trajectories(tmp_path)
    assert run.header["task"] == "recorded/anonymous/willing"
    assert run.steps.tolist() == [10, 20, 30, 40]
    assert np.allclose(run.states(slice(3, 4))[0], caller.values(40).numpy(), atol=2e-3)


def test_a_server_that_does_not_record_keeps_nothing(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job's consent is no order."""
    monkeypatch.chdir(tmp_path)
    caller = start()
    caller.register(record=True)
    caller.fill()
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize(("outcome", "pieces"), [("skipped", [[10, 20, 30, 40, 50]]), ("accepted", [[10, 20, 30], [40, 50]])])
def test_a_nowcast_cuts_the_run_unless_it_is_skipped(start: Start, tmp_path: Path, outcome: str, pieces: list[list[int]]) -> None:
    """A forecaster would learn from its own jumps, or a job in shadow mode would give pieces too short to learn from."""
    caller = start(record=tmp_path)
    caller.register(record=True)
    caller.fill(10, 20, 30)
    assert caller.nowcast().status_code == 200
    report = caller.client.post("/v1/jobs/job/outcomes", json={**OUTCOME, "outcome": outcome})
    assert report.status_code == 204
    caller.fill(40, 50)
    (run,) = trajectories(tmp_path)
    assert [piece.steps.tolist() for piece in run.pieces()] == pieces


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), ValueError("the dtype is too large")])
def test_a_failure_costs_the_record_not_the_job(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    """Training would stop for the sake of a record."""
    caller = start(record=tmp_path)
    caller.register(record=True)
    caller.fill(10)

    def fail(*arguments: object, **options: object) -> None:
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(TrajectoryWriter, "append", fail)
        caller.fill(20)
    caller.fill(30)
    assert caller.steps() == [10, 20, 30]
    (run,) = trajectories(tmp_path)
    assert run.steps.tolist() == [10]
