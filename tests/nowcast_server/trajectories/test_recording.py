"""`nowcast-server run --record`: what is kept of which job."""

import asyncio
import threading
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from server_kit import Start, frames

from nowcast_server import running
from nowcast_server.jobs.history import History
from nowcast_server.jobs.registry import Job
from nowcast_server.settings import Settings
from nowcast_server.trajectories.recording import Recording
from nowcast_server.trajectories.store import TrajectoryWriter, trajectories
from protos.messages import JobSpec
from protos.wiring import Parameter, Wiring


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


def test_what_is_known_of_a_run_is_recorded_with_it(start: Start, tmp_path: Path) -> None:
    """A map of recorded runs could not say which was which, nor where they ended."""
    caller = start(record=tmp_path)
    caller.register(record=True, about={"lr": 0.01, "seed": 3, "link": "http://head/"})
    for step, told in ((10, {"progress": {"step": 10, "loss": 0.5}}), (20, {})):
        caller.upload(step, frames(caller.values(step), step=step, **told))
    (run,) = trajectories(tmp_path)
    assert {name: run.header.get(name) for name in ("lr", "seed", "link")} == {"lr": 0.01, "seed": 3, "link": None}
    assert run.records["loss"].tolist() == pytest.approx([0.5, np.nan], nan_ok=True)


@pytest.mark.parametrize(("mode", "pieces"), [("glide", [[10, 20, 30, 40, 50]]), ("jump", [[10, 20, 30], [40, 50]])])
def test_a_nowcast_cuts_the_run_if_it_jumps(start: Start, tmp_path: Path, mode: str, pieces: list[list[int]]) -> None:
    """A forecaster would learn from its own jumps, or a job in shadow mode would give pieces too short to learn from."""
    caller = start(record=tmp_path)
    caller.register(record=True, mode=mode)
    caller.fill(10, 20, 30)
    assert caller.nowcast().status_code == 200
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


def test_an_upload_that_is_given_up_leaves_its_row_to_the_writer(tmp_path: Path) -> None:
    """A slow disk and a caller that hangs up would put the values of later steps into the record."""
    history = History(4, context=2, dtype="float32")
    spec = JobSpec(wiring=Wiring((Parameter("w", (4,)),), 1, ()), context=2, record=True)
    job = Job("tenant", "job", spec, history)
    begun, released = threading.Event(), threading.Event()

    async def store(step: int) -> None:
        row = await history.take()
        history.row(row).fill_(step)
        history.commit(step, row)
        history.drop(row)

    def slow(*arguments: Any, add: Any, **options: Any) -> None:
        begun.set()
        assert released.wait(60)
        add(*arguments, **options)

    async def run() -> None:
        recording = Recording(tmp_path)
        assert recording._recorder is not None
        recording._recorder.add = partial(slow, add=recording._recorder.add)  # type: ignore[method-assign]
        await store(10)
        upload = asyncio.create_task(recording.snapshot(job, 10))
        assert await asyncio.to_thread(begun.wait, 60)
        upload.cancel()
        await asyncio.gather(upload, return_exceptions=True)
        await store(20)
        await store(30)  # and 10 is no longer held
        later = asyncio.create_task(store(40))
        await asyncio.sleep(0.05)
        released.set()
        await later
        await recording.close()
        assert not history.in_use

    asyncio.run(run())
    (recorded,) = trajectories(tmp_path)
    assert (recorded.steps.tolist(), recorded.states(slice(None)).tolist()) == ([10], [[10.0] * 4])


def test_as_many_files_may_be_open_as_jobs_be_recorded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A server that records a thousand jobs would have no descriptors left to take calls with."""
    allowed: list[int] = []
    for name in ("configure_logging", "keep_freed_memory", "sys"):
        monkeypatch.setattr(running, name, Mock())
    monkeypatch.setattr(running, "allow_open_files", allowed.append)
    running.prepare_process(Settings(record=tmp_path, max_jobs=50, max_connections=500))
    assert allowed == [550 + running.OTHER_FILES]
