"""Many jobs from separate processes against two Ray Serve replicas, one of which is killed in the middle.

    python bench/load.py                                   # 64 jobs, 20 seconds
    python bench/load.py --seconds 180 --forecaster nino --verify-every 7   # the long run

Every job sends a snapshot and asks for a forecast from its last five, again and again, as a gliding worker does: when its replica
is gone it registers and resends.
Shown are the times by network size as the jobs saw them, and the memory of the replicas. It fails if a call fails for good, or if
one forecast differs in one bit from the one computed alone afterwards, in this process; or if a replica's memory grows while its
jobs stay the same.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import signal
import socket
import statistics
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from protos.errors import Busy, DeadlineExceeded, HistoryMissing, NowcastError, Unavailable, UnknownJob
from protos.messages import JobSpec, Progress
from trainer_worker.endpoints.client import HttpEndpoint
from trainer_worker.endpoints.endpoint import Asked, Deadline
from trainer_worker.wiring import wire

INTERVAL, CONTEXT, HORIZON = 10, 5, 40
CALL_S = 60.0
RUN = "NOWCAST_LOAD_RUN"
GIVE_UP_S = 120.0
FLAT = 1.1
"""Memory at the end of a stretch, to that at its beginning."""
SETTLE_S = 40.0
JUDGED_S = 20.0
"""A replica holds what its jobs need, and a killed one's jobs go to the other, then back to its successor: so memory is compared
over stretches in which no job moves, from SETTLE_S after replicas have come or gone until they do again, of JUDGED_S or more."""
MIX = (("14k", 10), ("56k", 3), ("222k", 2), ("1.5M", 1))
"""Networks, and how many of sixteen jobs have them."""


def network(size: str) -> nn.Module:
    """A perceptron with about so many weights."""
    width = {"14k": 70, "56k": 170, "222k": 375, "1.5M": 1060}[size]
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 32))


def snapshot(values: int, *, seed: int, step: int) -> torch.Tensor:
    """What a job sends at a step, (values,): no other job's and no other step's."""
    drawn = torch.Generator().manual_seed(seed * 1_000_003 + step)
    return torch.randn(values, generator=drawn)


@dataclass
class Record:
    """What one job saw.

    Args:
        nowcasts: (step, digest of the forecasts).
        seconds: of every successful call, by kind.
        recovered: failures a worker lives with, by code.
        failed: the others.
    """

    job: str
    size: str
    seed: int
    nowcasts: list[tuple[int, str]] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(default_factory=lambda: {"upload": [], "nowcast": []})
    recovered: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)


class Job:
    """One job, in a process of its own."""

    def __init__(self, record: Record, *, url: str, spec: JobSpec, token: str | None = None) -> None:
        self.record, self.spec = record, spec
        self.endpoint = HttpEndpoint(url, job=record.job, token=token)
        self.registered = False
        self.held: set[int] = set()
        self.out = torch.empty(1, spec.wiring.size)

    def run(self, *, until: float) -> None:
        """Interval after interval, to the end of the last one that began in time."""
        step = CONTEXT * INTERVAL
        while time.time() < until:
            self.boundary(step)
            step += INTERVAL
        self.endpoint.close()

    def boundary(self, step: int) -> None:
        """One more snapshot, and a forecast from the last ones."""
        steps = [step - INTERVAL * back for back in reversed(range(CONTEXT))]
        missing, deadline = [each for each in steps if each not in self.held], time.monotonic() + GIVE_UP_S
        while True:
            try:
                self.advance(steps, missing)
            except NowcastError as error:
                self.recover(error, steps, missing)
                if time.monotonic() > deadline:
                    self.record.failed.append(f"{steps[-1]}: gave up after {GIVE_UP_S:.0f} s: {error.code}: {error}")
                    return
            else:
                self.held = set(steps)
                return

    def advance(self, steps: list[int], missing: list[int]) -> None:
        """Whatever is still to do."""
        if not self.registered:
            self.endpoint.register(self.spec, replace=False, deadline=Deadline(CALL_S))
            self.registered = True
        while missing:
            values = snapshot(self.spec.wiring.size, seed=self.record.seed, step=missing[0])
            with self.timed("upload"):
                progress = Progress(step=missing[0], used=len(self.record.nowcasts))
                self.endpoint.send(missing[0], values, progress=progress, deadline=Deadline(CALL_S))
            del missing[0]
        self.out.fill_(torch.nan)
        with self.timed("nowcast"):
            self.endpoint.forecast(Asked(steps, (HORIZON,)), self.out, deadline=Deadline(CALL_S))
        self.record.nowcasts.append((steps[-1], digest(self.out)))

    def recover(self, error: NowcastError, steps: list[int], missing: list[int]) -> None:
        """As `trainer_worker.endpoints.sender` does."""
        self.record.recovered[error.code] += 1
        if isinstance(error, UnknownJob):
            self.registered = False
            missing[:] = steps
        elif isinstance(error, HistoryMissing):
            missing[:] = error.extra["missing"]
        elif isinstance(error, Unavailable | Busy | DeadlineExceeded):
            time.sleep(0.5)
        else:
            self.record.failed.append(f"{steps[-1]}: {error.code}: {error}")

    @contextmanager
    def timed(self, kind: str) -> Iterator[None]:
        """Count the time of a call that succeeds."""
        start = time.perf_counter()
        yield
        self.record.seconds[kind].append(time.perf_counter() - start)


def digest(forecasts: torch.Tensor) -> str:
    """Of every bit."""
    return hashlib.sha256(forecasts.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def job_process(record: Record, url: str, spec_json: str, until: float, folder: str) -> None:
    """What a job's process runs."""
    torch.set_num_threads(1)
    Job(record, url=url, spec=JobSpec.model_validate_json(spec_json)).run(until=until)
    (Path(folder) / f"{record.job}.json").write_text(json.dumps(vars(record)))


@contextmanager
def two_replicas(arguments: argparse.Namespace) -> Iterator[str]:
    """The server, on a Ray cluster of its own."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ[RUN] = uuid.uuid4().hex
    import ray
    from ray import serve

    from nowcast_server.serve.application import PATIENCE, Replicas, start

    os.environ.update(PATIENCE)
    ray.init(
        address="local",
        num_cpus=4,
        object_store_memory=100 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {"port": port, "memory": "2GiB", "threads": 1, "log_level": "warning"}
    settings |= {"checkpoints": [arguments.checkpoint]} if arguments.checkpoint else {}
    try:
        yield start(settings, replicas=Replicas(2, 2, cpus=0.5))
    finally:
        serve.shutdown()
        ray.shutdown()


def replica_processes() -> dict[int, int]:
    """Resident bytes of each of our replicas' processes, by process id; other clusters of this machine have the variable not."""
    mark = f"{RUN}={os.environ[RUN]}".encode()
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if b"ServeReplica:nowcast" in (path / "cmdline").read_bytes() and mark in (path / "environ").read_bytes():
                found[int(path.name)] = int((path / "statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
        except OSError:
            continue
    return found


Samples = list[tuple[float, dict[int, int]]]
"""(time, resident bytes by process) of all replicas."""


def watch(samples: Samples, over: threading.Event) -> None:
    """Sample the replicas' memory."""
    while not over.wait(1.0):
        samples.append((time.time(), replica_processes()))


def stretches(samples: Samples, *, until: float) -> list[Samples]:
    """The samples in which the same replicas have the same jobs, before the jobs end at `until`."""
    found: list[Samples] = []
    since, replicas = 0.0, set[int]()
    for moment, memory in samples:
        if set(memory) != replicas:
            since, replicas = moment, set(memory)
            found.append([])
        if since + SETTLE_S <= moment < until:
            found[-1].append((moment, memory))
    return [stretch for stretch in found if stretch and stretch[-1][0] - stretch[0][0] >= JUDGED_S]


def growth(stretch: Samples) -> dict[int, tuple[float, float]]:
    """Resident bytes of each replica in the first and in the last third of a stretch."""
    third = max(1, len(stretch) // 3)
    first, last = stretch[:third], stretch[-third:]
    return {
        process: (
            statistics.median(memory[process] for _, memory in first),
            statistics.median(memory[process] for _, memory in last),
        )
        for process in stretch[0][1]
    }


def run_jobs(
    records: list[Record], specs: dict[str, str], url: str, arguments: argparse.Namespace, *, until: float
) -> list[Record]:
    """All jobs at once; a replica dies halfway."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "trainer_worker.endpoints.client", "trainer_worker.wiring"])
    with tempfile.TemporaryDirectory() as folder:
        given = [(record, url, specs[record.size], until, folder) for record in records]
        processes = [context.Process(target=job_process, args=each) for each in given]
        for process in processes:
            process.start()
        if arguments.kill:
            time.sleep(max(0.0, until - time.time() - arguments.seconds / 2))
            victim = next(iter(replica_processes()))
            print(f"killing replica {victim}", flush=True)
            os.kill(victim, signal.SIGKILL)
        for process in processes:
            process.join(arguments.seconds + arguments.start_s + 2 * GIVE_UP_S)
            process.kill()
        return [_read(Path(folder), record, process.exitcode) for record, process in zip(records, processes, strict=True)]


def _read(folder: Path, record: Record, status: int | None) -> Record:
    try:
        values = json.loads((folder / f"{record.job}.json").read_text())
    except OSError:
        record.failed.append(f"the job's process ended with {status}")
        return record
    return Record(**{**values, "recovered": Counter(values["recovered"])})


def verify(records: list[Record], specs: dict[str, JobSpec], arguments: argparse.Namespace) -> tuple[int, list[str]]:
    """Compute the forecasts alone; how many, and those that differ."""
    from nowcast_server.forecasters import load_forecaster

    torch.set_num_threads(1)
    forecaster = load_forecaster(arguments.forecaster, checkpoint=arguments.checkpoint)
    checked, wrong = 0, []
    for record in records:
        spec = specs[record.size]
        for step, told in record.nowcasts[:: arguments.verify_every]:
            steps = range(step - INTERVAL * (CONTEXT - 1), step + 1, INTERVAL)
            states = torch.stack([snapshot(spec.wiring.size, seed=record.seed, step=each) for each in steps])
            with torch.no_grad():
                alone = forecaster.forecast(spec.wiring, states, horizons=(HORIZON,))
            checked += 1
            if digest(alone) != told:
                wrong.append(f"{record.job} at step {step}")
    return checked, wrong


def percentile(values: list[float], share: float) -> float:
    """Milliseconds."""
    return 1e3 * sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


def show(records: list[Record]) -> None:
    """The table."""
    print(f"{'size':>6} {'jobs':>5} {'nowcasts':>9} {'upload p50':>11} {'p95 ms':>8} {'nowcast p50':>12} {'p95 ms':>8}")
    by_size: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_size[record.size].append(record)
    for size, same in by_size.items():
        uploads = [seconds for record in same for seconds in record.seconds["upload"]]
        asked = [seconds for record in same for seconds in record.seconds["nowcast"]]
        print(
            f"{size:>6} {len(same):>5} {sum(len(record.nowcasts) for record in same):>9}"
            f" {percentile(uploads, 0.5):>11.1f} {percentile(uploads, 0.95):>8.1f}"
            f" {percentile(asked, 0.5):>12.1f} {percentile(asked, 0.95):>8.1f}"
        )
    recovered = sum((record.recovered for record in records), Counter[str]())
    print(f"recovered from: {dict(recovered) or 'nothing'}")


def growing(judged: list[Samples]) -> list[str]:
    """Replicas that took more and more while their jobs stayed the same; shows how all did."""
    found = []
    if not judged:
        print(f"memory is not judged: no {JUDGED_S:.0f} s without a change of replicas; take more --seconds")
    for stretch in judged:
        seconds = stretch[-1][0] - stretch[0][0]
        for process, (first, last) in growth(stretch).items():
            told = f"replica {process}: {first / 2**20:.0f} to {last / 2**20:.0f} MiB ({last / first:.2f}x) over {seconds:.0f} s"
            print(f"{told} with the same jobs")
            found += [told] if last > FLAT * first else []
    return found


def main() -> int:
    """Run it all; 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--start-s", type=float, default=10, help="for the jobs' processes to come up")
    parser.add_argument("--forecaster", default="spectral")
    parser.add_argument("--checkpoint", help="its weights, if it needs any that are not in the package")
    parser.add_argument("--verify-every", type=int, default=1, help="compute every so many-th forecast alone")
    parser.add_argument("--no-kill", dest="kill", action="store_false")
    arguments = parser.parse_args()
    sizes = [size for size, share in MIX for _ in range(share)]
    records = [Record(f"load-{index}", sizes[index % len(sizes)], seed=index + 1) for index in range(arguments.jobs)]
    common: dict[str, Any] = {"context": CONTEXT, "forecaster": arguments.forecaster}
    specs = {size: JobSpec(wiring=wire(network(size)), **common) for size, _ in MIX}
    memory: Samples = []
    over = threading.Event()
    with two_replicas(arguments) as url:
        until = time.time() + arguments.start_s + arguments.seconds
        watcher = threading.Thread(target=watch, args=(memory, over))
        watcher.start()
        try:
            given = {size: spec.model_dump_json() for size, spec in specs.items()}
            records = run_jobs(records, given, url, arguments, until=until)
        finally:
            over.set()
            watcher.join()
    show(records)
    judged = stretches(memory, until=until)
    grown = growing(judged)
    checked, wrong = verify(records, specs, arguments)
    failed = [f"{record.job}: {failure}" for record in records for failure in record.failed]
    idle = [record.job for record in records if not record.nowcasts]
    print(f"{checked} forecasts computed alone, {len(wrong)} differ")
    print(f"{len(failed)} calls failed for good; {len(idle)} jobs without a nowcast")
    print("\n".join([*wrong[:5], *failed[:5], *idle[:5], *grown]))
    return 1 if wrong or failed or idle or grown else 0


if __name__ == "__main__":
    sys.exit(main())
