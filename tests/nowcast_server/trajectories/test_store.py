"""Trajectories on disk."""

import json
from pathlib import Path

import numpy as np
import pytest

from nowcast_server.trajectories import store
from nowcast_server.trajectories.store import MAGIC, MAX_PARAMETERS, BadTrajectory, Trajectory, TrajectoryWriter, trajectories

RNG = np.random.default_rng(0)
STATES = RNG.normal(size=(6, 40)).astype(np.float32)


def write(path: Path, steps: range = range(6)) -> None:
    with TrajectoryWriter(path, STATES[0], header={"task": "t", "interval": 10}) as writer:
        for index in steps:
            writer.append(10 * index, STATES[index], loss=0.5 * index, segment=index // 3)


def test_reads_back_what_was_written(tmp_path: Path) -> None:
    """A fit would learn from other weights than training had."""
    write(tmp_path / "a.trajectory")
    (found,) = trajectories(tmp_path)
    assert found.header["task"] == "t"
    assert found.steps.tolist() == [0, 10, 20, 30, 40, 50]
    assert found.records["segment"].tolist() == [0, 0, 0, 1, 1, 1]
    assert np.allclose(found.records["loss"], 0.5 * np.arange(6))
    assert np.array_equal(found.states(slice(0, 1))[0], STATES[0])
    assert np.allclose(found.states(np.array([2, 5])), STATES[[2, 5]], atol=2e-3)
    base = np.ones(8, dtype=np.float32)  # small movements keep their digits
    with TrajectoryWriter(tmp_path / "b.trajectory", base, header={}) as writer:
        writer.append(1, base + np.float32(1.23e-4))
    assert np.allclose(Trajectory.open(tmp_path / "b.trajectory").states(slice(0, 1))[0] - base, 1.23e-4, rtol=2e-3)


@pytest.mark.parametrize(
    ("steps", "pieces"),
    [
        ([10, 20, 30, 41, 53, 67], [[10, 20, 30, 41, 53, 67]]),
        ([10, 20, 30, 60, 70, 80], [[10, 20, 30], [60, 70, 80]]),
        ([10, 20, 30, 31, 32, 33], [[10, 20, 30], [31, 32, 33]]),
        ([7], [[7]]),
    ],
    ids=["grows", "a gap", "another interval", "one"],
)
def test_pieces_are_nearly_even(tmp_path: Path, steps: list[int], pieces: list[list[int]]) -> None:
    """A missing snapshot would be taken for weights that moved twice as fast; a run whose interval grows would be cut to bits."""
    with TrajectoryWriter(tmp_path / "a.trajectory", STATES[0], header={}) as writer:
        for index, step in enumerate(steps):
            writer.append(step, STATES[index % len(STATES)])
    assert [piece.steps.tolist() for piece in Trajectory.open(tmp_path / "a.trajectory").pieces()] == pieces


@pytest.mark.parametrize("cut", [1, 50, 104 + 3])
def test_goes_on_after_a_crash(tmp_path: Path, cut: int) -> None:
    """A record cut off by a crash would be read as weights, or make the rest of the run unreadable."""
    path, whole = tmp_path / "a.trajectory", tmp_path / "b.trajectory"
    write(path, range(4))
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - cut)
    kept = len(Trajectory.open(path).steps)
    assert kept == (3 if cut < 104 else 2)
    write(path, range(kept, 6))
    write(whole)
    assert path.read_bytes() == whole.read_bytes()
    content = bytearray(path.read_bytes())
    content[-5] ^= 0xFF  # bits that the disk turned
    path.write_bytes(content)
    assert Trajectory.open(path).steps.tolist() == [0, 10, 20, 30, 40]


def test_refuses_what_does_not_fit(tmp_path: Path) -> None:
    """Another network's snapshots, steps out of order, or weights beyond float16 would corrupt a run silently."""
    path = tmp_path / "a.trajectory"
    write(path)
    with pytest.raises(BadTrajectory, match="40 parameters"):
        TrajectoryWriter(path, STATES[0][:10], header={})
    with TrajectoryWriter(path, STATES[0], header={}) as writer:
        with pytest.raises(BadTrajectory, match="not after"):
            writer.append(50, STATES[0])
        with pytest.raises(BadTrajectory, match="float16"):
            writer.append(60, STATES[0] + 1e6)
    (tmp_path / "c.trajectory").write_bytes(b"something else")
    with pytest.raises(BadTrajectory, match="no trajectory"):
        Trajectory.open(tmp_path / "c.trajectory")


@pytest.mark.parametrize("size", [MAX_PARAMETERS + 1, 2**40, -1])
def test_no_file_is_of_more_parameters_than_it_can_hold(tmp_path: Path, size: int) -> None:
    """A snapshot too large for a record would be written, gigabytes of it, and the file not be readable; or NumPy would raise."""
    path = tmp_path / "a.trajectory"
    assert store._record(MAX_PARAMETERS).itemsize == 24 + 2 * MAX_PARAMETERS > 2**31 - 4  # beyond, NumPy's size falls below 0
    if size == MAX_PARAMETERS + 1:
        with pytest.raises(BadTrajectory, match=f"at most {MAX_PARAMETERS} parameters"):
            TrajectoryWriter(path, np.broadcast_to(np.float32(0), (size,)), header={})
        assert not path.exists()
    header = json.dumps({"format": 1, "parameters": size}).encode()
    path.write_bytes(MAGIC + len(header).to_bytes(8, "little") + header)
    with pytest.raises(BadTrajectory, match="at most"):
        Trajectory.open(path)


@pytest.mark.parametrize(
    ("length", "text"),
    [(2**63, b'{"format":1,"parameters":3}'), (200_000, b"[" * 200_000), (0, b""), (30, b'{"format":1,"parameters":3}   ')],
)
def test_a_damaged_file_costs_its_run_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture, length: int, text: bytes) -> None:
    """What a power cut leaves of one file would keep a fit from all the others, and `metatrain show` from saying which it is."""
    for name in ("a", "c"):
        write(tmp_path / f"{name}.trajectory")
    damaged = tmp_path / "b.trajectory"
    damaged.write_bytes(MAGIC + length.to_bytes(8, "little") + text if text else b"")
    assert [run.path.stem for run in trajectories(tmp_path)] == ["a", "c"]
    assert str(damaged) in caplog.text
    with pytest.raises(BadTrajectory):
        Trajectory.open(damaged)


def test_drafts_are_not_read(tmp_path: Path) -> None:
    """A fit that begins beside a collection, or after one that was stopped, would take half a run, or one twice."""
    write(tmp_path / "1-00000" / "00.trajectory")
    write(tmp_path / ".1-00001" / "00.trajectory", range(2))
    assert [run.path.parent.name for run in trajectories(tmp_path)] == ["1-00000"]
