"""Following a job: its log until it ends, and its final status."""

import asyncio
from collections.abc import AsyncIterator, Iterator

from ray.job_submission import JobStatus, JobSubmissionClient

from trainer_worker.cluster.connection import cluster_errors


def logs(client: JobSubmissionClient, submission: str) -> Iterator[str]:
    """The job's output so far, and what comes until it has ended.

    Raises:
        ClusterError: there is no such job, or the cluster is gone.
    """
    with cluster_errors(submission):
        if client.get_job_status(submission).is_terminal():
            yield client.get_job_logs(submission)
            return
    lines = client.tail_job_logs(submission)
    with asyncio.Runner() as runner, cluster_errors(submission):
        while True:
            try:
                yield runner.run(_next(lines))
            except StopAsyncIteration:
                return


async def _next(lines: AsyncIterator[str]) -> str:
    return await anext(lines)


def failure(client: JobSubmissionClient, submission: str) -> str:
    """Why a job did not succeed, "" if it did.

    Raises:
        ClusterError: there is no such job, or the cluster is gone.
    """
    with cluster_errors(submission):
        details = client.get_job_info(submission)
    if details.status == JobStatus.SUCCEEDED:
        return ""
    return f"{details.status.value.lower()}: {(details.message or '').partition(', last available logs')[0]}"
