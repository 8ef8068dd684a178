"""A job's state and log, once or until it ends."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import httpx2
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from protos.messages import API, JobList
from protos.messages import JobStatus as NowcastJob
from trainer_worker.cluster.connection import cluster_errors
from trainer_worker.cluster.errors import ClusterError
from trainer_worker.endpoints.http_client import http_client
from trainer_worker.names import belongs_to

POLL_S: Final = 0.5
STOP_S: Final = 60.0
ASK_SERVER_S: Final = 2.0
SERVER_KEY: Final = "nowcast.server"
MARK: Final = "nowcast.version"


@dataclass(frozen=True)
class State:
    """A submission as the cluster sees it."""

    id: str
    status: str
    message: str
    entrypoint: str
    started_at: float | None
    seconds: float | None
    server: str | None

    @classmethod
    def of(cls, details: JobDetails) -> "State":
        """Read from what Ray says; its times are milliseconds."""
        start = details.start_time / 1000 if details.start_time else None
        end = details.end_time / 1000 if details.end_time else time.time()
        return cls(
            id=details.submission_id or "",
            status=details.status.value.lower(),
            message=(details.message or "").partition(", last available logs")[0],
            entrypoint=details.entrypoint,
            started_at=start,
            seconds=end - start if start else None,
            server=(details.metadata or {}).get(SERVER_KEY),
        )


def submissions(client: JobSubmissionClient, *, everything: bool = False) -> list[State]:
    """Jobs of the cluster, newest first; by default those that `nowcast submit` sent."""
    with cluster_errors():
        found = [each for each in client.list_jobs() if each.submission_id and (everything or MARK in (each.metadata or {}))]
    return sorted(map(State.of, found), key=lambda state: state.started_at or 0, reverse=True)


def state(client: JobSubmissionClient, submission: str) -> State:
    """One job.

    Raises:
        ClusterError: there is none of that name.
    """
    with cluster_errors(submission):
        return State.of(client.get_job_info(submission))


def nowcast_jobs(found: State, *, token: str | None) -> list[NowcastJob]:
    """What the nowcast server knows of a submission's runs; nothing if it cannot be asked from here."""
    if found.server is None:
        return []
    try:
        with http_client(found.server, token=token) as client:
            answer = client.get(f"{API}/jobs", timeout=ASK_SERVER_S)
        jobs = JobList.model_validate_json(answer.content).jobs if answer.is_success else []
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, OSError):
        return []
    return [job for job in jobs if belongs_to(job.job, found.id)]


def logs(client: JobSubmissionClient, submission: str, *, follow: bool) -> Iterator[str]:
    """The job's output so far; with `follow` what comes as well, until the job has ended.

    Raises:
        ClusterError: there is no such job, or the cluster is gone.
    """
    with cluster_errors(submission):
        if not follow or client.get_job_status(submission).is_terminal():
            yield client.get_job_logs(submission)
            return
    yield from _tail(client, submission)


def _tail(client: JobSubmissionClient, submission: str) -> Iterator[str]:
    """Ray's asynchronous stream of lines, one after the other."""
    lines = client.tail_job_logs(submission)
    with asyncio.Runner() as runner, cluster_errors(submission):
        while True:
            try:
                yield runner.run(_next(lines))
            except StopAsyncIteration:
                return


async def _next(lines: AsyncIterator[str]) -> str:
    return await anext(lines)


def stop(client: JobSubmissionClient, submission: str, *, wait_s: float = STOP_S) -> State:
    """Stop a job, and wait until it has.

    Raises:
        ClusterError: there is no such job, or it does not stop.
    """
    with cluster_errors(submission):
        client.stop_job(submission)
    return wait(client, submission, until=lambda status: status.is_terminal(), wait_s=wait_s)


def wait(client: JobSubmissionClient, submission: str, *, until: Callable[[JobStatus], Any], wait_s: float) -> State:
    """Wait for a state of a job.

    Raises:
        ClusterError: it does not come within `wait_s`.
    """
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        with cluster_errors(submission):
            if until(client.get_job_status(submission)):
                return state(client, submission)
        time.sleep(POLL_S)
    raise ClusterError(f"{submission} is still {state(client, submission).status} after {wait_s:.0f} s")
