"""Recording the jobs that allow it, off the event loop: what they stream becomes trajectories for `metatrain fit`."""

import asyncio
import math
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from nowcast_server.jobs.registry import Job
from nowcast_server.logs import log
from nowcast_server.trajectories.store import SUFFIX, BadTrajectory, Floats, Trajectory, TrajectoryWriter
from protos.wiring import Wiring


class Recording:
    """Keeps the snapshots of jobs registered with `record: true` below a folder, by tenant. Used on the event loop.

    A disk that fails, or whatever else, costs the record, never the job: it is logged, and the job is not recorded any further.
    """

    def __init__(self, folder: Path | None) -> None:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            TemporaryFile(dir=folder).close()  # told now, not in the log of the first job
        self._recorder = Recorder(folder) if folder else None
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="recording")  # one file is written by one thread, in order
        self._failed: set[Job] = set()

    async def snapshot(self, job: Job, step: int) -> None:
        """Keep a snapshot that the job's history holds; while it is written, its row is not given away."""
        if self._recorder is None or not job.spec.record or job in self._failed or step not in job.history.steps:
            return
        row, loop = job.history.hold(step), asyncio.get_running_loop()
        told = job.progress.loss if job.progress is not None and job.progress.step == step else None
        loss, about = math.nan if told is None else told, job.spec.about.model_dump(include={"lr", "seed"}, exclude_none=True)
        add = partial(self._recorder.add, _name(job), wiring=job.spec.wiring, loss=loss, about=about)
        state = job.history.row(row)
        writing = self._writer.submit(lambda: add(step=step, state=state.float().numpy()))
        # not when this call ends, which may be given up while the writer reads on
        writing.add_done_callback(lambda _: loop.call_soon_threadsafe(job.history.drop, row))
        await self._written(job, writing)

    async def nowcast(self, job: Job) -> None:
        """A nowcast was made. If the run jumps, what follows does not continue what came before."""
        if self._recorder is not None and job.spec.record and job.spec.mode == "jump":
            await self._written(job, self._writer.submit(self._recorder.jumped, _name(job)))

    def end(self, job: Job) -> None:
        """The job is gone."""
        self._failed.discard(job)
        if self._recorder is not None and job.spec.record:
            self._writer.submit(self._recorder.end, _name(job))

    async def close(self) -> None:
        """The server stops."""
        if self._recorder is not None:
            await asyncio.get_running_loop().run_in_executor(self._writer, self._recorder.close)
        self._writer.shutdown()

    async def _written(self, job: Job, writing: Future[Any]) -> None:
        try:
            await asyncio.wrap_future(writing)
        except Exception as error:  # noqa: BLE001 -- whatever it is, the snapshot is stored, and the job shall go on
            self._failed.add(job)
            expected = isinstance(error, OSError | BadTrajectory)
            whose = {"tenant": job.tenant, "job": job.id}
            log.error("the job is not recorded any further: %s", error, exc_info=not expected, extra=whose)


def _name(job: Job) -> str:
    return f"{job.tenant}/{job.id}"


@dataclass
class Recorder:
    """Keeps the snapshots of jobs in a folder, one file a run. For one thread."""

    folder: Path  # below which the files lie
    _open: dict[str, TrajectoryWriter] = field(default_factory=dict)
    _cut: set[str] = field(default_factory=set)  # whose next snapshot begins a segment

    def add(
        self, job: str, *, wiring: Wiring, step: int, state: Floats, loss: float = math.nan, about: Mapping[str, Any] | None = None
    ) -> bool:
        """Keep a snapshot (n,) float32 and the training loss before it; whether it was kept. A new file's header says `about`.

        A step that is held already, as when a worker sends its context again, is passed over, and so is a snapshot whose
        weights moved beyond what float16 reaches.
        """
        if job not in self._open:
            path = self._path(f"{job}-{wiring.hash[:12]}", step)
            header = {"task": f"recorded/{job}", "wiring": wiring.to_dict(), **(about or {})}
            self._open[job] = TrajectoryWriter(path, state, header=header)
            self._cut.add(job)
        run = self._open[job]
        if step <= run.last_step:
            return False
        try:
            run.append(step, state, loss=loss, segment=run.last_segment + (job in self._cut))
        except BadTrajectory:
            return False
        self._cut.discard(job)
        run.flush()
        return True

    def jumped(self, job: str) -> None:
        """The job has loaded a forecast: what follows does not continue what came before."""
        self._cut.add(job)

    def end(self, job: str) -> None:
        """The job is gone; one that comes back under its name continues its file if its steps do."""
        self._cut.discard(job)
        if run := self._open.pop(job, None):
            run.close()

    def close(self) -> None:
        """End all."""
        for job in tuple(self._open):
            self.end(job)

    def _path(self, name: str, step: int) -> Path:
        """The run's file; or the next number, if that is damaged or of another run, which has come further than `step`."""
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
