"""Two runs with one job id: never a mixture, and the one that began last has the job."""

from httpx2 import Response
from server_kit import Caller, refused


def finish(caller: Caller) -> Response:
    return caller.client.post("/v1/jobs/job/finish", json={"step": 30}, headers=caller.headers)


def test_a_job_is_one_runs(caller: Caller) -> None:
    """A forecast from the snapshots of two runs is of neither, and nobody would notice."""
    caller.client.delete("/v1/jobs/job")
    first, second = (caller.as_job("job", **{"x-run-id": run}) for run in ("first", "second"))
    assert first.register().status_code == 201
    first.fill()
    refused(second.register(), 409, "run_conflict", "x-run-id")
    refused(second.upload(40), 409, "run_conflict", "x-run-id")
    refused(second.nowcast(), 409, "run_conflict", "x-run-id")
    refused(finish(second), 409, "run_conflict", "x-run-id")
    assert first.register().status_code == 200
    assert first.nowcast().status_code == 200
    assert second.status()["steps"] == [10, 20, 30]  # anybody of the tenant may look


def test_a_run_takes_a_job_over(caller: Caller) -> None:
    """A run that was killed and started again would be shut out of its own job."""
    caller.client.delete("/v1/jobs/job")
    first, second = (caller.as_job("job", **{"x-run-id": run}) for run in ("first", "second"))
    first.register()
    first.fill()
    assert second.client.delete("/v1/jobs/job", headers=second.headers).status_code == 204
    assert second.register().status_code == 201
    assert second.steps() == []
    refused(first.upload(40), 409, "run_conflict")
    refused(first.register(), 409, "run_conflict")


def test_a_run_that_does_not_say_who_it_is(caller: Caller) -> None:
    """Clients of before would be shut out; and a run id of any form would reach logs and tables."""
    assert caller.upload(10).status_code == 200
    refused(caller.as_job("job", **{"x-run-id": "late"}).upload(20), 409, "run_conflict")
    refused(caller.as_job("job", **{"x-run-id": "a b"}).upload(20), 422, "bad_request", "x-run-id")
