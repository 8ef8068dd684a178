"""Recording what jobs stream, so that a team's forecaster learns the team's own workloads."""

from dataclasses import dataclass, field
from pathlib import Path

from nowcast_server.trajectories.store import SUFFIX, BadTrajectory, Floats, Trajectory, TrajectoryWriter
from protos.wiring import Wiring


@dataclass
class _Recording:
    writer: TrajectoryWriter
    segment: int
    written: int  # the segment of the last snapshot


@dataclass
class Recorder:
    """Keeps the snapshots of jobs in a folder, one file a run. For one thread.

    Args:
        folder: below which the files lie.
    """

    folder: Path
    _open: dict[str, _Recording] = field(default_factory=dict)

    def add(self, job: str, *, wiring: Wiring, step: int, state: Floats) -> bool:
        """Keep a snapshot (n,) float32; whether it was kept.

        A step that is held already, as when a worker sends its context again, is passed over, and so is a snapshot whose
        weights moved beyond what float16 reaches.
        """
        recording = self._open.get(job) or self._begin(job, wiring, step, state)
        if step <= recording.writer.last_step:
            return False
        try:
            recording.writer.append(step, state, segment=recording.segment)
        except BadTrajectory:
            return False
        recording.written = recording.segment
        recording.writer.flush()
        return True

    def jumped(self, job: str) -> None:
        """The job has loaded a forecast: what follows does not continue what came before."""
        if job in self._open:
            self._open[job].segment = self._open[job].written + 1

    def end(self, job: str) -> None:
        """The job is gone; one that comes back under its name continues its file if its steps do."""
        if recording := self._open.pop(job, None):
            recording.writer.close()

    def close(self) -> None:
        """End all."""
        for job in tuple(self._open):
            self.end(job)

    def _begin(self, job: str, wiring: Wiring, step: int, state: Floats) -> _Recording:
        header = {"task": f"recorded/{job}", "wiring": wiring.to_dict()}
        path = self._free_path(f"{job}-{wiring.hash[:12]}", step)
        segment = _last_segment(path) + 1 if path.exists() else 0
        self._open[job] = _Recording(TrajectoryWriter(path, state, header=header), segment, segment)
        return self._open[job]

    def _free_path(self, name: str, step: int) -> Path:
        """The run's file; or the next number, if that is damaged or another run's of the same name.

        Another run has come further than `step`.
        """
        number = 0
        while (path := self.folder / f"{name}-{number}{SUFFIX}").exists() and not _continues(path, step):
            number += 1
        return path


def _continues(path: Path, step: int) -> bool:
    try:
        run = Trajectory.open(path)
    except BadTrajectory:
        return False
    return not len(run.steps) or int(run.steps[-1]) < step


def _last_segment(path: Path) -> int:
    segments = Trajectory.open(path).records["segment"]
    return int(segments[-1]) if len(segments) else -1
