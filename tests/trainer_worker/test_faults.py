"""Servers that break: training goes on, and the summary says what was skipped and why."""

import logging
import math
import time
from typing import Any

import pytest
import torch
from faulty_server import FaultyServer
from small_runs import CONTEXT, INTERVAL, PERIOD, flat, network, step
from waiting import until

from protos.messages import DEADLINE_HEADER, SESSION_HEADER
from trainer_worker import BadArgument, FixedHorizon, Nowcast
from trainer_worker.endpoints import client

STEPS = 3 * PERIOD


def start(server: FaultyServer, **options: Any) -> tuple[Any, torch.optim.Optimizer, Nowcast]:
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    defaults = {"max_steps": STEPS, "interval": INTERVAL, "context": CONTEXT, "policy": FixedHorizon(3), "timeout_s": 15.0}
    return model, optimizer, Nowcast(model, optimizer, server=server.url, **{**defaults, **options})


def run(server: FaultyServer, **options: Any) -> dict[str, Any]:
    """The summary of a run with two nowcasts whose weights stayed finite."""
    model, optimizer, nowcast = start(server, **options)
    with nowcast:
        for index in range(STEPS):
            step(model, optimizer, index)
    assert flat(model).isfinite().all()
    assert nowcast.step == STEPS
    return nowcast.summary()


def test_the_headers_of_every_call(faulty: FaultyServer) -> None:
    """Without the session a router spreads a job over replicas; without the deadline a server works for nobody."""
    assert run(faulty, job="mine", token="secret")["nowcasts"]["accepted"] == 2
    assert {headers[SESSION_HEADER] for headers in faulty.headers} == {"mine"}
    assert {headers["authorization"] for headers in faulty.headers} == {"Bearer secret"}
    assert all(0 < float(headers[DEADLINE_HEADER]) <= 15 for headers in faulty.headers)
    assert faulty.calls.count("send") == 2 * CONTEXT
    assert [outcome["outcome"] for outcome in faulty.outcomes] == ["accepted", "accepted"]


@pytest.mark.parametrize("timeout_s", [math.inf, 1e10])
def test_a_timeout_may_be_longer_than_sockets_wait(faulty: FaultyServer, timeout_s: float) -> None:
    """Who would rather wait than miss a nowcast would get none."""
    assert run(faulty, timeout_s=timeout_s)["nowcasts"]["accepted"] == 2
    assert all(0 < float(headers[DEADLINE_HEADER]) <= client.LONGEST_S for headers in faulty.headers)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("nan", "bad_forecast"),
        ("wrong_shape", "bad_forecast"),
        ("wrong_step", "bad_forecast"),
        ("garbage", "bad_forecast"),
        ("checksum", "bad_forecast"),
        ("no_end", "bad_forecast"),
        ("bad_forecast", "bad_forecast"),
        ("internal", "server_error"),
        ("out_of_memory_budget", "out_of_memory_budget"),
        ("deadline_exceeded", "timeout"),
        ("busy", "busy"),
        ("html", "server_unavailable"),
        ("close", "server_unavailable"),
        ("unavailable", "server_unavailable"),
    ],
)
def test_a_broken_forecast_is_skipped_with_its_reason(faulty: FaultyServer, fault: str, reason: str) -> None:
    """A forecast that is not whole, finite and the one asked for must never reach the weights."""
    repeated = fault in ("busy", "html", "close", "unavailable")  # what the client asks for again by itself
    faulty.faults["forecast"].extend([fault] * (3 if repeated else 1))
    faulty.retry_after = "0.05"
    model, optimizer, nowcast = start(faulty)
    with nowcast:
        for index in range(PERIOD):
            step(model, optimizer, index)
        until(lambda: faulty.calls.count("report") == 1)  # it is back, if it was held to be gone
        for index in range(PERIOD, STEPS):
            step(model, optimizer, index)
    assert flat(model).isfinite().all()
    assert not faulty.faults["forecast"]
    assert nowcast.summary()["reasons"] == {reason: 1}
    assert nowcast.summary()["nowcasts"]["accepted"] == 1


@pytest.mark.parametrize("fault", ["busy", "close", "unavailable", "html"])
@pytest.mark.parametrize("call", ["register", "send", "forecast"])
def test_a_passing_fault_costs_nothing(faulty: FaultyServer, call: str, fault: str) -> None:
    """One lost packet or a moment of load must not cost a nowcast."""
    faulty.faults[call].append(fault)
    faulty.retry_after = "0.05"
    assert run(faulty)["nowcasts"] == {"accepted": 2, "rejected": 0, "skipped": 0}


@pytest.mark.parametrize(("call", "fault"), [("forecast", "hang"), ("forecast", "trickle"), ("send", "hang")])
def test_a_hanging_server_costs_its_timeout_and_no_more(faulty: FaultyServer, call: str, fault: str) -> None:
    """A server that answers never, or byte by byte, must not hold up training."""
    faulty.faults[call].append(fault)
    begun = time.monotonic()
    summary = run(faulty, timeout_s=0.5)
    assert summary["reasons"]["timeout"] >= 1
    assert summary["waited_s"] < 4  # two nowcasts, each its timeout and some grace
    assert time.monotonic() - begun < 20


def test_a_forgotten_job_is_registered_and_its_context_sent_again(faulty: FaultyServer) -> None:
    """A server that restarts between two calls has lost everything; the worker has not."""
    model, optimizer, nowcast = start(faulty)
    with nowcast:
        for index in range(PERIOD - 1):
            step(model, optimizer, index)
        until(lambda: faulty.calls.count("send") == CONTEXT - 1)
        faulty.jobs.clear()
        step(model, optimizer, PERIOD - 1)
    assert nowcast.summary()["nowcasts"]["accepted"] == 1
    assert faulty.calls.count("register") == 2
    assert sorted(faulty.jobs[nowcast.job]) == list(range(INTERVAL, PERIOD + 1, INTERVAL))


def test_lost_snapshots_are_sent_again(faulty: FaultyServer) -> None:
    """`history_missing` names what a server has lost; the worker keeps it for this very case."""
    model, optimizer, nowcast = start(faulty)
    with nowcast:
        for index in range(PERIOD - 1):
            step(model, optimizer, index)
        until(lambda: faulty.calls.count("send") == CONTEXT - 1)
        faulty.faults["send"].append("")
        faulty.faults["forecast"].append("history_missing")
        step(model, optimizer, PERIOD - 1)
    assert nowcast.summary()["nowcasts"]["accepted"] == 1
    assert faulty.calls.count("send") > CONTEXT


@pytest.mark.parametrize("fault", ["unknown_job", "history_missing", "snapshot_conflict"])
def test_a_server_that_never_learns_is_given_up(faulty: FaultyServer, fault: str) -> None:
    """Resending for ever would load the network and hold up training until the deadline."""
    call = "forecast" if fault == "history_missing" else "send"
    faulty.faults[call].extend([fault] * 100)
    summary = run(faulty)
    assert summary["reasons"] == {fault: 2}
    assert summary["waited_s"] < 10


@pytest.mark.parametrize(("fault", "reason"), [("too_large", "too_large"), ("bad_value", "bad_value"), ("forbidden", "forbidden")])
def test_a_refused_snapshot_costs_its_context_alone(faulty: FaultyServer, fault: str, reason: str) -> None:
    """A refusal must be told by its own reason, and not be repeated for a snapshot that cannot get better."""
    faulty.faults["send"].append(fault)
    model, optimizer, nowcast = start(faulty)
    with nowcast:
        for index in range(PERIOD + 1):
            step(model, optimizer, index)
            if index == INTERVAL:
                until(lambda: "send" in faulty.calls)
        assert faulty.calls.count("send") == 1
        for index in range(PERIOD + 1, STEPS):
            step(model, optimizer, index)
    assert nowcast.summary()["reasons"] == {reason: 1}
    assert nowcast.summary()["nowcasts"]["accepted"] == 1


@pytest.mark.parametrize("fault", ["unauthorized", "forbidden", "job_conflict", "unknown_forecaster", "bad_wiring", "too_large"])
def test_a_server_that_refuses_the_job_says_so_at_the_start(faulty: FaultyServer, fault: str) -> None:
    """A wrong token found out after the run has cost the run its nowcasts."""
    faulty.faults["register"].append(fault)
    _, _, nowcast = start(faulty)
    with pytest.raises(BadArgument, match=fault), nowcast:
        pass


@pytest.mark.parametrize("fault", ["unauthorized", "out_of_memory_budget", "unknown_forecaster", "not_found"])
def test_a_server_that_refuses_a_resumed_job_does_not_end_the_run(faulty: FaultyServer, fault: str) -> None:
    """A run is resumed because a node was lost, in the night; that the server filled up meanwhile must not be its end."""
    _, _, first = start(faulty, job="mine")
    faulty.faults["register"].append(fault)
    model, optimizer, nowcast = start(faulty, job="mine")
    nowcast.load_state_dict(first.state_dict())
    with nowcast:
        step(model, optimizer, 0)
        assert [(event.outcome, event.reason) for event in nowcast.events] == [("lost", fault)]
        until(lambda: nowcast._context._sender._registered)
        for index in range(1, STEPS):
            step(model, optimizer, index)
    assert nowcast.summary()["nowcasts"]["accepted"] == 2
    assert nowcast.summary()["server"] == {"lost": 1, "back": 1}


def test_another_service_on_the_port_is_no_nowcast_server(faulty: FaultyServer) -> None:
    """An address that is off by one must not look like success."""
    faulty.faults["register"].extend(["not_found"])
    _, _, nowcast = start(faulty)
    with pytest.raises(BadArgument, match="not_found"), nowcast:
        pass


def test_a_dead_server_costs_a_period_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """The breaker remembers that the server is down; only the background thread tries it again."""
    server = FaultyServer()
    server.close()
    caplog.set_level(logging.WARNING, "trainer_worker")
    begun = time.monotonic()
    summary = run(server)
    assert time.monotonic() - begun < 15
    assert summary["reasons"] == {"server_unavailable": 2}
    assert summary["waited_s"] < 0.5
    assert "skipped (server_unavailable" in caplog.text
