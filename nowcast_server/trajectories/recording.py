"""Recording the jobs that allow it, off the event loop: what they stream becomes trajectories for `metatrain fit`."""

import asyncio
import math
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from nowcast_server.jobs.registry import Job, Jobs
from nowcast_server.logs import log
from nowcast_server.trajectories.store import SUFFIX, BadTrajectory, Floats, Trajectory, TrajectoryWriter


class Recording:
    """Keeps the snapshots of jobs registered with `record: true` below a folder, by tenant, one file a run. Used on the event loop,
    but for `add` and `end_all`, which a thread of its own calls. A disk that fails, or whatever else, costs the record, never the
    job: it is logged, and the job is not recorded any further.
    """

    def __init__(self, folder: Path | None, *, jobs: Jobs) -> None:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            TemporaryFile(dir=folder).close()  # told now, not in the log of the first job
        self._folder, self._jobs = folder, jobs
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="recording")  # one file is written by one thread, in order
        self._failed: set[Job] = set()
        self._open: dict[str, TrajectoryWriter] = {}  # the thread's, by tenant and job
        self._cut: set[str] = set()  # the thread's: whose next snapshot begins a segment

    def _records(self, job: Job) -> bool:
        return self._folder is not None and job.spec.record and job not in self._failed

    async def snapshot(self, job: Job, step: int) -> None:
        """Keep a snapshot that the job's history holds; while it is written, its row is not given away."""
        if not self._records(job) or step not in job.history.steps:
            return
        row, loop = job.history.hold(step), asyncio.get_running_loop()
        told = job.progress.loss if job.progress is not None and job.progress.step == step else None
        state, loss = job.history.row(row), math.nan if told is None else told
        self._jobs.enter(job)
        writing = self._writer.submit(lambda: self.add(job, step, state.float().numpy(), loss=loss))
        # not when this call ends, which may be given up while the writer reads on
        writing.add_done_callback(lambda _: loop.call_soon_threadsafe(self._let_go, job, row))
        await self._written(job, writing)

    def _let_go(self, job: Job, row: int) -> None:
        job.history.drop(row)
        self._jobs.leave(job)

    async def nowcast(self, job: Job) -> None:
        """A nowcast was made. If the run jumps, what follows does not continue what came before."""
        if self._records(job) and job.spec.mode == "jump":
            await self._written(job, self._writer.submit(self._cut.add, _name(job)))

    def end(self, job: Job) -> None:
        """The job is gone; one that comes back under its name continues its file if its steps do."""
        self._failed.discard(job)
        if self._records(job):
            self._writer.submit(self._end, _name(job))

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._writer, self.end_all)
        self._writer.shutdown()

    async def _written(self, job: Job, writing: Future[Any]) -> None:
        try:
            await asyncio.wrap_future(writing)
        except Exception as error:  # noqa: BLE001 -- whatever it is, the snapshot is stored, and the job shall go on
            self._failed.add(job)
            expected = isinstance(error, OSError | BadTrajectory)
            whose = {"tenant": job.tenant, "job": job.id}
            log.error("the job is not recorded any further: %s", error, exc_info=not expected, extra=whose)

    def add(self, job: Job, step: int, state: Floats, *, loss: float = math.nan) -> None:
        """Keep a snapshot (n,) float32 and the training loss before it. A step that is held already, as when a worker sends its
        context again, is passed over, and so is a snapshot whose weights moved beyond what float16 reaches.
        """
        name, wiring = _name(job), job.spec.wiring
        if name not in self._open:
            about = job.spec.about.model_dump(include={"lr", "seed"}, exclude_none=True)
            header = {"task": f"recorded/{name}", "wiring": wiring.to_dict(), **about}
            self._open[name] = TrajectoryWriter(self._path(f"{name}-{wiring.hash[:12]}", step), state, header=header)
            self._cut.add(name)
        run = self._open[name]
        with suppress(BadTrajectory):
            run.append(step, state, loss=loss, segment=run.last_segment + (name in self._cut))
            self._cut.discard(name)

    def _end(self, name: str) -> None:
        self._cut.discard(name)
        if run := self._open.pop(name, None):
            run.close()

    def end_all(self) -> None:
        """End the files of all jobs."""
        for name in tuple(self._open):
            self._end(name)

    def _path(self, name: str, step: int) -> Path:
        """The run's file; or the next number, if that is damaged or of another run, which has come further than `step`."""
        assert self._folder is not None
        number = 0
        while (path := self._folder / f"{name}-{number}{SUFFIX}").exists() and not _continues(path, step):
            number += 1
        return path


def _name(job: Job) -> str:
    return f"{job.tenant}/{job.id}"


def _continues(path: Path, step: int) -> bool:
    try:
        run = Trajectory.open(path)
    except BadTrajectory:
        return False
    return not len(run.steps) or int(run.steps[-1]) < step
