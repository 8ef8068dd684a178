"""Names of jobs."""

import pytest
from pydantic import TypeAdapter

from protos.messages import JobId
from trainer_worker.endpoints.server import Server
from trainer_worker.names import job_id


@pytest.mark.parametrize("submission", ["my run", "größe", "実験", "-x-", "", "a" * 90])
def test_any_name_makes_an_id_that_servers_take(submission: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every `Nowcast` of a submission or results folder with such a name would be refused."""
    monkeypatch.setenv("NOWCAST_JOB", submission)
    for job in (Server().new_job(), job_id(submission), job_id(submission, "adam+" + "forecaster" * 9, str(2**32 - 1))):
        assert TypeAdapter(JobId).validate_python(job) == job
