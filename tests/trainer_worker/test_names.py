"""Names of jobs."""

import pytest
from pydantic import TypeAdapter

from protos.messages import JobId
from trainer_worker.assembly import new_job
from trainer_worker.names import belongs_to, job_id


@pytest.mark.parametrize("submission", ["my run", "größe", "実験", "-x-", "", "a" * 90])
def test_any_name_makes_an_id_that_servers_take(submission: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every `Nowcast` of a submission or results folder with such a name would be refused."""
    monkeypatch.setenv("NOWCAST_JOB", submission)
    for job in (new_job(), job_id(submission), job_id(submission, "adam+" + "forecaster" * 9, str(2**32 - 1))):
        assert TypeAdapter(JobId).validate_python(job) == job
        assert belongs_to(job, submission)


def test_a_submission_has_no_runs_of_another() -> None:
    """`nowcast status exp` would show the runs of exp2 as well."""
    assert not belongs_to(job_id("exp2"), "exp")
    assert not belongs_to(job_id("exp"), "exp2")
