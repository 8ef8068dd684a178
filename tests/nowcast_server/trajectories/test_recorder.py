"""Trajectories of jobs that a server sees."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from nowcast_server.trajectories.recording import Recorder
from nowcast_server.trajectories.store import Trajectory, trajectories
from protos.wiring import Parameter, Wiring
from trainer_worker.metatrain.library import Library
from trainer_worker.wiring import wire

WIRING = wire(nn.Linear(3, 2))
RNG = np.random.default_rng(0)


def snapshot() -> np.ndarray:
    return RNG.normal(size=8).astype(np.float32)


def add(recorder: Recorder, step: int, job: str = "team.job-1") -> bool:
    return recorder.add(job, wiring=WIRING, step=step, state=snapshot())


def test_a_snapshot_sent_again_is_kept_once(tmp_path: Path) -> None:
    """A worker resends its context after a server restart; the run would go back in time."""
    recorder = Recorder(tmp_path)
    assert [add(recorder, step) for step in (0, 10, 10, 0, 20)] == [True, True, False, False, True]
    recorder.close()


def test_a_restarted_server_goes_on_and_a_restarted_job_begins_anew(tmp_path: Path) -> None:
    """Runs would be mixed into each other, or the first part of one lost."""
    for steps in ((0, 10), (20, 30), (0, 10)):
        recorder = Recorder(tmp_path)
        assert all(add(recorder, step) for step in steps)
        recorder.close()
    assert [run.steps.tolist() for run in trajectories(tmp_path)] == [[0, 10, 20, 30], [0, 10]]


@pytest.mark.parametrize("kept_bytes", [0, 10, 100])
def test_a_damaged_file_is_left_alone(tmp_path: Path, kept_bytes: int) -> None:
    """A file that a crash left empty would keep its job from ever being recorded again."""
    recorder = Recorder(tmp_path)
    assert add(recorder, 0)
    recorder.close()
    (damaged,) = tmp_path.iterdir()
    damaged.write_bytes(damaged.read_bytes()[:kept_bytes])
    recorder = Recorder(tmp_path)
    assert [add(recorder, step) for step in (10, 20)] == [True, True]
    recorder.close()
    assert damaged.stat().st_size == kept_bytes
    (other,) = set(tmp_path.iterdir()) - {damaged}
    assert Trajectory.open(other).steps.tolist() == [10, 20]


def test_a_fit_reads_them_by_their_wiring(tmp_path: Path) -> None:
    """Recorded jobs have no design to wire anew: without their wiring they would be useless."""
    recorder = Recorder(tmp_path)
    for step in range(0, 250, 10):
        add(recorder, step)
    recorder.close()
    (group,) = Library.open(tmp_path).training
    assert (group.kind, group.wiring.hash) == ("recorded", WIRING.hash)
    assert torch.from_numpy(group.runs[0].states(slice(0, 2))).shape == (2, 8)


def test_a_record_takes_no_memory_between_snapshots(tmp_path: Path) -> None:
    """Each recorded job would hold a float32 snapshot that no budget counts, and a full server would end."""
    size, jobs = 100_000, 8
    wiring = Wiring((Parameter("w", (size,)),), 1, ())
    recorder = Recorder(tmp_path)
    tracemalloc.start()
    try:
        for job in range(jobs):
            for step in (10, 20):
                assert recorder.add(f"team/{job}", wiring=wiring, step=step, state=np.full(size, step, np.float32))
        held_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        recorder.close()
    assert held_bytes < 4 * size * jobs / 4
    assert all(run.states(slice(None)).mean(axis=1).tolist() == [10, 20] for run in trajectories(tmp_path))
