"""`nowcast-server run --record`: what is kept of which job."""

import asyncio
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from server_kit import Start, frames, until
from torch import nn

from nowcast_server.jobs.budget import Budget
from nowcast_server.jobs.history import History
from nowcast_server.jobs.registry import Job, Jobs
from nowcast_server.settings import Settings
from nowcast_server.trajectories.recording import Recording
from nowcast_server.trajectories.store import Trajectory, TrajectoryWriter, trajectories
from protos.messages import JobSpec
from protos.wiring import Parameter, Wiring
from trainer_worker.metatrain.library import Library
from trainer_worker.wiring import wire

RNG = np.random.default_rng(0)


def job_of(wiring: Wiring, *, context: int = 5, name: str = "job-1") -> Job:
    spec = JobSpec(wiring=wiring, context=context, record=True)
    return Job("team", name, spec, History(wiring.size, context=context, dtype="float32"))


JOB, JOBS = job_of(wire(nn.Linear(3, 2))), Jobs(Budget(10**9), settings=Settings())


def test_jobs_that_allow_it_are_recorded_with_what_is_known(start: Start, tmp_path: Path) -> None:
    """Weights are a team's property: keeping them unasked would be theft. A map of runs could not say which was which."""
    caller = start(record=tmp_path)
    willing, other = caller.as_job("willing"), caller.as_job("other")
    willing.register(record=True, about={"lr": 0.01, "seed": 3, "link": "http://head/"})
    other.register()
    willing.upload(10, frames(caller.values(10), step=10, progress={"step": 10, "loss": 0.5}))
    willing.fill(20, 30, 40)
    other.fill(10, 20, 30, 40)
    (run,) = trajectories(tmp_path)
    assert run.steps.tolist() == [10, 20, 30, 40]
    assert np.allclose(run.states(slice(3, 4))[0], caller.values(40).numpy(), atol=2e-3)
    known = {"task": "recorded/anonymous/willing", "lr": 0.01, "seed": 3, "link": None}
    assert {name: run.header.get(name) for name in known} == known
    assert run.records["loss"].tolist() == pytest.approx([0.5, *[np.nan] * 3], nan_ok=True)


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

    with monkeypatch.context() as patch:
        patch.setattr(TrajectoryWriter, "append", Mock(side_effect=failure))
        caller.fill(20)
    caller.fill(30)
    assert caller.steps() == [10, 20, 30]
    (run,) = trajectories(tmp_path)
    assert run.steps.tolist() == [10]


def test_what_is_being_written_is_still_counted(start: Start, tmp_path: Path) -> None:
    """Jobs that come and go faster than a disk writes would fill the memory, snapshot by snapshot, beyond every budget."""
    caller, begun, released = start(record=tmp_path), threading.Event(), threading.Event()
    service = caller.service

    def slow(*_: Any, **__: Any) -> None:
        begun.set()
        assert released.wait(60)

    service.recording.add = slow  # type: ignore[assignment]
    caller.register(record=True)
    with ThreadPoolExecutor(1) as pool:
        upload = pool.submit(caller.upload, 10)
        assert begun.wait(60)
        assert caller.client.delete("/v1/jobs/job").status_code == 204
        assert service.histories.used_bytes > 0
        released.set()
        assert upload.result().status_code == 200
    until(lambda: service.histories.used_bytes == 0)


def test_an_upload_that_is_given_up_leaves_its_row_to_the_writer(tmp_path: Path) -> None:
    """A slow disk and a caller that hangs up would put the values of later steps into the record."""
    job = job_of(Wiring((Parameter("w", (4,)),), 1, ()), context=2)
    history, begun, released = job.history, threading.Event(), threading.Event()

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
        recording = Recording(tmp_path, jobs=JOBS)
        recording.add = partial(slow, add=recording.add)  # type: ignore[method-assign]
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


def record(folder: Path, *steps: int) -> None:
    """Record a job's snapshots by a server that ends then."""
    recording = Recording(folder, jobs=JOBS)
    for step in steps:
        recording.add(JOB, step, RNG.normal(size=8).astype(np.float32))
    recording.end_all()


def test_runs_go_on_and_those_that_begin_anew_are_others(tmp_path: Path) -> None:
    """Runs would be mixed into each other, or go back in time when a worker resends its context, or their first part be lost."""
    for steps in ((0, 10, 10, 0), (20, 30), (0, 10)):
        record(tmp_path, *steps)
    assert [run.steps.tolist() for run in trajectories(tmp_path)] == [[0, 10, 20, 30], [0, 10]]


@pytest.mark.parametrize("kept_bytes", [0, 10, 100])
def test_a_damaged_file_is_left_alone(tmp_path: Path, kept_bytes: int) -> None:
    """A file that a crash left empty would keep its job from ever being recorded again."""
    record(tmp_path, 0)
    (damaged,) = (tmp_path / "team").iterdir()
    damaged.write_bytes(damaged.read_bytes()[:kept_bytes])
    record(tmp_path, 10, 20)
    assert damaged.stat().st_size == kept_bytes
    (other,) = set((tmp_path / "team").iterdir()) - {damaged}
    assert Trajectory.open(other).steps.tolist() == [10, 20]


def test_a_fit_reads_them_by_their_wiring(tmp_path: Path) -> None:
    """Recorded jobs have no design to wire anew: without their wiring they would be useless."""
    record(tmp_path, *range(0, 250, 10))
    (group,) = Library.open(tmp_path).training
    assert (group.kind, group.wiring.hash) == ("recorded", JOB.spec.wiring.hash)
    assert torch.from_numpy(group.runs[0].states(slice(0, 2))).shape == (2, 8)


def test_a_record_takes_little_memory(tmp_path: Path) -> None:
    """Each recorded job would hold a float32 snapshot that no budget counts, or each write several; a full server would end."""
    size, recording = 100_000, Recording(tmp_path, jobs=JOBS)
    jobs = [job_of(Wiring((Parameter("w", (size,)),), 1, ()), name=str(index)) for index in range(8)]
    tracemalloc.start()
    try:
        for job in jobs:
            for step in (10, 20):
                recording.add(job, step, np.full(size, step, np.float32))
        held_bytes, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        recording.end_all()
    assert held_bytes < 4 * size * len(jobs) / 4
    assert peak_bytes < held_bytes + (4 + 4 + 2) * size  # the snapshot given, the base as it is opened, and the record
    assert all(run.states(slice(None)).mean(axis=1).tolist() == [10, 20] for run in trajectories(tmp_path))
