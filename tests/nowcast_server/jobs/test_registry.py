"""Registering, looking at and forgetting jobs."""

import json
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest.mock import Mock

import pytest
from server_kit import NOWCAST, Caller, Last, Start, answer, dense, refused, until

from nowcast_server.jobs import history
from nowcast_server.jobs.budget import Budget
from nowcast_server.jobs.registry import Jobs
from nowcast_server.settings import Settings
from protos.errors import UnknownJob
from protos.messages import JobSpec
from protos.wiring import MAX_NAME, Wiring

JSON = {"content-type": "application/json"}


@pytest.mark.parametrize("change", [{"context": 4}, {"mode": "jump"}, {"dtype": "float16"}])
def test_conflicting_job(caller: Caller, change: dict[str, Any]) -> None:
    """Two runs under one id would mix their snapshots, or be forecast with the wrong graph."""
    refused(caller.register(**change), 409, "job_conflict", *change)
    assert caller.status()["wiring_hash"] == caller.wiring.hash


def test_unknown_paths_and_methods(caller: Caller) -> None:
    """A wrong path or method would be answered as something other than a problem."""
    for path in ("/v1/jobs/../../etc", "/v1/jobs/a%2Fb", "/v2/jobs", "/v1/jobs/", "/none/x"):
        refused(caller.client.put(path, json={}), 404, "not_found")
    refused(caller.client.post("/v1/jobs/job", json={}), 405, "method_not_allowed")


def test_a_refused_job_costs_nothing(start: Start) -> None:
    """A few registrations of 200 bytes, all refused, would take gigabytes to look at first."""
    caller = start(memory=50_000_000)
    wide = {
        "parameters": [["w", [10_000, 10_000]]],
        "neurons": 20_000,
        "blocks": [[1, 0, 10_000, 10_000, 10_000, 0, 0, 0, 1, 10_000, 1, 0]],
    }
    tracemalloc.start()
    try:
        refused(caller.register(wiring=wide, dtype="float16"), 507, "out_of_memory_budget")
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()
    assert caller.service.histories.used_bytes == 0


def test_names_are_counted(start: Start) -> None:
    """Names of parameters, which may be far larger than the parameters, would fill memory that is on nobody's books."""
    caller = start(memory=800_000)
    names = [f"\U0001f600{index:03}".ljust(MAX_NAME, "a") for index in range(100)]  # four bytes for each character
    wiring = {"parameters": [[name, [1]] for name in names], "neurons": 1, "blocks": []}
    assert caller.as_job("a").register(wiring=wiring).status_code == 201
    assert caller.service.histories.used_bytes > 4 * 100 * MAX_NAME
    refused(caller.as_job("b").register(wiring=wiring), 507, "out_of_memory_budget")
    long = {"parameters": [["v", [1]], ["w" * (MAX_NAME + 1), [1]]], "neurons": 1, "blocks": []}
    refused(caller.as_job("c").register(wiring=long), 422, "bad_wiring", "parameters[1]")


def test_snapshot_limit(start: Start) -> None:
    """One job could take all the memory there is."""
    caller = start(max_snapshot=799, wiring=dense(10, 20))
    refused(caller.register(), 413, "too_large", "wiring.parameters")
    assert caller.register(dtype="float16").status_code == 201


def test_jobs_that_register_at_once_are_counted(start: Start) -> None:
    """A thousand registrations at once would all be within the limit, as none of them is a job yet."""
    both = threading.Barrier(2)

    class Planned(Last):
        def working_bytes(self, wiring: Wiring, *, context: int) -> int:
            both.wait(60)
            return 0

    caller = start(Planned(), max_jobs=1)
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda name: caller.as_job(name).register().status_code, "ab"))
    assert sorted(answers) == [201, 429]
    caller.service.remove(caller.entry)
    assert caller.service.histories.used_bytes == 0


def test_status_figures(caller: Caller) -> None:
    """The status would show figures that nobody measured."""
    empty = caller.status()
    assert (empty["snapshots"], empty["nowcasts"], empty["forecast_s"]) == (0, 0, None)
    caller.fill()
    assert caller.nowcast().status_code == 200
    status = caller.status()
    assert (status["parameters"], status["neurons"], status["edges"]) == (12, 7, 19)
    assert (status["history_bytes"], status["snapshots"], status["nowcasts"], status["steps"]) == (4 * 12 * 4, 3, 1, [10, 20, 30])
    assert 0 < status["forecast_s"] < 60
    assert time.time() - 60 < status["created_at"] < status["seen_at"] <= time.time()
    assert caller.client.get("/v1/jobs").json()["jobs"][0]["job"] == "job"


def test_idle_jobs_expire(start: Start) -> None:
    """Memory of runs that ended without a word would never come back."""
    caller = start(idle_s=0.2)
    assert caller.register().status_code == 201
    until(lambda: not len(caller.service.jobs))
    assert caller.service.histories.used_bytes == 0
    refused(caller.upload(10), 404, "unknown_job")


def test_a_job_in_use_does_not_expire_and_gives_its_memory_back_once() -> None:
    """A forecast longer than the idle time would lose its history; or each use of a deleted job that ends give back its memory."""
    budget = Budget(10**6)
    jobs = Jobs(budget, settings=Settings())
    with jobs.reserved("tenant", "job", spec=JobSpec(wiring=dense()), run=None) as job:
        pass
    jobs.enter(job)
    jobs.enter(job)
    assert jobs.expire(0.0) == []
    jobs.leave(job)
    jobs.enter(job)
    jobs.remove(job)
    assert budget.used_bytes > 0
    jobs.leave(job)
    jobs.leave(job)
    assert budget.used_bytes == 0
    with pytest.raises(UnknownJob), jobs.using(job):
        pass
    assert budget.used_bytes == 0
    jobs.finish(job)  # deleted while what its run told last was on its way
    assert budget.used_bytes == 0


def test_a_nowcast_asked_for_when_its_job_is_gone(listen: Start) -> None:
    """A call whose body comes after its job was deleted would forecast from a history whose memory others have."""
    caller = listen()
    assert caller.register().status_code == 201
    seen = caller.entry.seen
    with caller.connect() as connection:
        connection.sendall(NOWCAST[:-20])
        until(lambda: caller.entry.seen > seen)  # the call has found its job
        assert caller.client.delete("/v1/jobs/job").status_code == 204
        response, body = answer(connection, NOWCAST[-20:])
    assert (response.status, json.loads(body)["code"]) == (404, "unknown_job")
    assert caller.service.histories.used_bytes == 0


def test_no_memory_after_all(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with less memory than the budget promised would answer `internal`, and keep the promise on its books."""
    used = caller.service.histories.used_bytes
    monkeypatch.setattr(history, "mmap", Mock(side_effect=OSError("can't allocate memory")))
    refused(caller.as_job("other").register(), 507, "out_of_memory_budget")
    assert caller.service.histories.used_bytes == used


def test_odd_registrations_that_are_right(start: Start) -> None:
    """A convolution, or a tensor that several layers share, would be refused; or a name that JSON writes in halves."""
    caller = start()
    body = b'{"forecaster": "last", "wiring": {"parameters": [["\\ud83d\\uDE00", [1]]], "neurons": 1, "blocks": []}}'
    assert caller.client.put("/v1/jobs/long", content=body.ljust(100_000), headers=JSON).status_code == 201
    blocks = [
        [1, 0, 2, 2, 3, 0, 0, 0, 4, 12, 4, 1],  # (3, 3, 4): two of three inputs
        [1, 4, 1, 5, 3, 0, 0, 8, 4, 12, 4, 1],
        [2, 0, 3, 5, 3, 1, 1, 0, 1, 1, 1, 0],  # every second of six
        [2, 0, 3, 5, 3, 1, 1, 1, 2, 0, 1, 0],
    ]
    wiring = {"parameters": [["w", [3, 3, 2, 2]], ["b", [6]]], "neurons": 9, "blocks": blocks}
    assert caller.register(wiring=wiring).status_code == 201


def test_refusals_are_short(start: Start) -> None:
    """A name of megabytes would come back, and go into the log."""
    caller = start()
    for change in ({"forecaster": "x" * 50_000}, {"x" * 50_000: 1}, {"wiring": {"x" * 50_000: 1}}):
        assert len(refused(caller.register(**change), 422, caller.register(**change).json()["code"])["detail"]) <= 500
        assert len(caller.register(**change).content) < 1500


def test_our_own_mistakes_are_not_the_clients(caller: Caller) -> None:
    """A status that we make wrongly would be answered as a request that is not valid, without a trace in the log."""
    caller.entry.created_at = "yesterday"  # type: ignore[assignment]
    refused(caller.client.get("/v1/jobs/job"), 500, "internal")


def test_a_job_is_one_runs_until_another_takes_it_over(caller: Caller) -> None:
    """A forecast from the snapshots of two runs is of neither; or a run that was killed, or does not say who it is, would be shut
    out of its own job; or a run id of any form reach logs and tables.
    """
    assert caller.upload(10).status_code == 200
    refused(caller.as_job("job", **{"x-run-id": "late"}).upload(20), 409, "run_conflict")
    refused(caller.as_job("job", **{"x-run-id": "a b"}).upload(20), 422, "bad_request", "x-run-id")
    caller.client.delete("/v1/jobs/job")
    first, second = (caller.as_job("job", **{"x-run-id": run}) for run in ("first", "second"))
    first.filled()
    finish = second.client.post("/v1/jobs/job/finish", json={"step": 30}, headers=second.headers)
    for response in (second.register(), second.upload(40), second.nowcast(), finish):
        refused(response, 409, "run_conflict", "x-run-id")
    assert first.register().status_code == 200
    assert first.nowcast().status_code == 200
    assert second.status()["steps"] == [10, 20, 30]  # anybody of the tenant may look
    assert second.client.delete("/v1/jobs/job", headers=second.headers).status_code == 204
    refused(second.upload(40), 404, "unknown_job")
    assert second.register().status_code == 201
    assert second.steps() == []
    refused(first.upload(40), 409, "run_conflict")
    refused(first.register(), 409, "run_conflict")
