"""A server short of memory evicts the history that has rested longest; its job sends its snapshots again."""

from typing import Any

import pytest
from server_kit import TOKENS, Caller, Held, Start, bearer, dense, read_forecasts, refused

from nowcast_server.jobs.course import COURSE_BYTES

ONE, KEPT = COURSE_BYTES + 29_932, COURSE_BYTES + 1_132
"""Memory of a job of `dense(10, 20)`; what is left of it when its history is evicted."""


def memory_for(jobs: int) -> int:
    """Bytes for so many jobs, and one whose history is evicted."""
    return jobs * ONE + KEPT + 5_000


def crowded(start: Start, jobs: int = 2, **settings: Any) -> Caller:
    """A server with memory for so many jobs, whose histories may be evicted at once."""
    return start(**{"memory": memory_for(jobs), "wiring": dense(10, 20), "evict_idle_s": 1e-6, **settings})


def resting(caller: Caller, name: str, *, gap_s: float = 0.0, tenant: str = "", filled: bool = True) -> Caller:
    """A job that sends a snapshot every so many seconds, however slow this machine is."""
    job = caller.as_job(name, **(bearer(tenant) if tenant else {}))
    assert job.register().status_code == 201
    if filled:
        job.fill()
    caller.service.jobs.get(tenant or "anonymous", name).gap_s = gap_s
    return job


def test_the_longest_idle_history_makes_room(start: Start) -> None:
    """A server full of abandoned jobs would refuse new ones for hours; or an evicted job get no forecast any more."""
    caller = crowded(start)
    a, b = (resting(caller, name) for name in "ab")
    a.status()  # so that b has rested longest
    assert caller.as_job("c").register().status_code == 201
    assert (a.steps(), b.steps()) == ([10, 20, 30], [])
    assert b.status()["history_bytes"] == 0
    assert caller.service.histories.used_bytes <= caller.service.histories.limit_bytes
    assert "nowcast_evictions_total 1.0" in caller.client.get("/metrics").text
    assert refused(b.nowcast(), 409, "history_missing")["missing"] == [10, 20, 30]
    b.fill()
    assert read_forecasts(b.nowcast().content)[0].step == 30


def test_a_job_at_work_is_not_evicted_nor_another_in_vain(start: Start) -> None:
    """Jobs would drive each other out in turn, and send all their snapshots for each forecast, or lose them during one; one that
    is refused all the same would have cost others their histories.
    """
    caller, held = crowded(start), Held()
    rests, works = resting(caller, "rests"), resting(caller, "works", gap_s=3600.0)
    large = caller.as_job("large")
    large.wiring = dense(15, 20)  # needs the memory of both
    refused(large.register(), 507, "out_of_memory_budget")
    assert rests.steps() == works.steps() == [10, 20, 30]
    caller.service.jobs.get("anonymous", "works").gap_s = 0.0
    assert large.register().status_code == 201
    caller = start(held, memory=memory_for(1), wiring=dense(10, 20), evict_idle_s=1e-6)
    with held.making(resting(caller, "a")):
        refused(caller.as_job("b").register(), 507, "out_of_memory_budget")


def test_a_tenant_evicts_its_own_first(start: Start) -> None:
    """A tenant that registers job after job would drive out everybody else's histories."""
    caller = crowded(start, memory=3 * (ONE - KEPT) + 7 * KEPT + 5_000, tokens=TOKENS)
    bobs = resting(caller, "bobs", tenant="bob")
    for index in range(6):
        resting(caller, f"job-{index}", tenant="alice")
    assert bobs.steps() == [10, 20, 30]


def test_a_tenants_limit_is_its_own(start: Start) -> None:
    """A tenant at its limit would evict others' histories, which does not help it."""
    caller = crowded(start, 10, tenant_memory=memory_for(1), tokens=TOKENS)
    bobs = resting(caller, "bobs", tenant="bob")
    resting(caller, "first", tenant="alice", gap_s=3600.0, filled=False)
    second = caller.as_job("second", **bearer("alice"))
    refused(second.register(), 507, "out_of_memory_budget")
    caller.service.jobs.get("alice", "first").gap_s = 0.0
    assert second.register().status_code == 201
    assert bobs.steps() == [10, 20, 30]


def test_memory_for_an_evicted_job_is_waited_for(start: Start) -> None:
    """A worker would take it for the end of its nowcasts that memory is short just now."""
    caller = crowded(start, 1)
    a = resting(caller, "a", filled=False)
    resting(caller, "b", gap_s=3600.0, filled=False)
    assert refused(a.upload(10), 429, "busy")["retry_after_s"] > 0


def finish(caller: Caller) -> Any:
    return caller.client.post(f"/v1/jobs/{caller.job}/finish", headers=caller.headers)


def test_a_finished_job_frees_its_memory(start: Start) -> None:
    """Runs that are over would fill a server's memory until they expire; or nobody could look at how they went."""
    caller = crowded(start).filled()
    assert caller.nowcast().status_code == 200
    before = caller.service.histories.used_bytes
    answer = finish(caller)
    assert answer.status_code == 200
    assert (answer.json()["history_bytes"], answer.json()["nowcasts"]) == (0, 1)
    assert before - caller.service.histories.used_bytes == caller.entry.evictable_bytes > 4 * 200 * 4
    assert caller.status()["snapshots"] == 3
    assert finish(caller).status_code == 200
    refused(caller.upload(40), 404, "unknown_job")
    refused(caller.nowcast(), 404, "unknown_job")
    assert caller.register().status_code == 200  # a run that goes on
    caller.fill()
    assert caller.nowcast().status_code == 200


@pytest.mark.parametrize("limit", ["max_jobs", "tenant_jobs"])
def test_finished_jobs_make_way(start: Start, limit: str) -> None:
    """A server would refuse new jobs because of those that are over."""
    caller = start(**{limit: 2})
    a, b, c = (caller.as_job(name) for name in "abc")
    for job in (a, b):
        assert job.register().status_code == 201
    refused(c.register(), 429, "busy")
    finish(b)
    assert c.register().status_code == 201
    refused(b.client.get("/v1/jobs/b"), 404, "unknown_job")
    assert a.status()["job"] == "a"
