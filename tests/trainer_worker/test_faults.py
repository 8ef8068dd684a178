"""Servers that break: training goes on, and the summary says what was skipped and why."""

import math
import time
from contextlib import closing
from typing import Any

import pytest
import torch
from cut_network import CutNetwork
from faulty_server import FaultyServer
from small_runs import FIRST, FULL, INTERVAL, STEPS, TAKEN_UP, flat, learner, make, plain, train
from torch import nn
from waiting import until

from protos.messages import DEADLINE_HEADER, JOB_HEADER
from trainer_worker import Nowcast, Server
from trainer_worker.endpoints import client, sender

ALL = {"used": len(TAKEN_UP), "skipped": 0}


def start(server: FaultyServer, *, timeout_s: float = 15.0, job: str | None = None, **options: Any) -> tuple[Any, Any, Nowcast]:
    model, optimizer = learner()
    reached = Server(server.url, timeout_s=timeout_s, job=job, token=options.pop("token", None))
    return model, optimizer, make(model, optimizer, reached, **options)


def run(server: FaultyServer, **options: Any) -> dict[str, Any]:
    """The summary of a run that was trained to its end; each step waits for the answer that is due."""
    model, optimizer, nowcast = start(server, **options)
    with nowcast:
        train(model, optimizer, range(STEPS), nowcast)
        if not nowcast.summary()["reasons"]:
            until(lambda: nowcast.in_flight == 0)
    assert flat(model).isfinite().all()
    assert nowcast.steps == STEPS
    return nowcast.summary()


def test_the_headers_of_every_call(faulty: FaultyServer) -> None:
    """Without the session a router spreads a job over replicas; without the deadline a server works for nobody."""
    assert run(faulty, job="mine", token="secret")["nowcasts"] == ALL
    assert {headers[JOB_HEADER] for headers in faulty.headers} == {"mine"}
    assert {headers["authorization"] for headers in faulty.headers} == {"Bearer secret"}
    assert all(0 < float(headers[DEADLINE_HEADER]) <= 15.1 for headers in faulty.headers)  # 15 s, and what the bytes take
    assert faulty.calls.count("send") == STEPS // INTERVAL
    assert faulty.contexts == [list(range(at - FULL, at, INTERVAL)) for at in TAKEN_UP]
    assert [(progress["step"], progress["used"]) for progress in faulty.finished] == [(STEPS, len(TAKEN_UP))]


@pytest.mark.parametrize("timeout_s", [math.inf, 1e10])
def test_a_timeout_may_be_longer_than_sockets_wait(faulty: FaultyServer, timeout_s: float) -> None:
    """Who would rather wait than miss a nowcast would get none."""
    assert run(faulty, timeout_s=timeout_s)["nowcasts"] == ALL
    assert all(0 < float(headers[DEADLINE_HEADER]) <= client.LONGEST_S for headers in faulty.headers)


REASONS = {
    **dict.fromkeys(("nan", "wrong_shape", "wrong_step", "garbage", "checksum", "no_end", "bad_forecast", "login"), "bad_forecast"),
    **dict.fromkeys(("html", "close", "unavailable"), "server_unavailable"),
    **{fault: fault for fault in ("out_of_memory_budget", "busy")},
    "internal": "server_error",
    "deadline_exceeded": "late",
    "moved": "bad_request",
}
"""What a forecast that breaks in some way is skipped for."""


@pytest.mark.parametrize(("fault", "reason"), REASONS.items())
def test_a_broken_forecast_is_skipped_with_its_reason(faulty: FaultyServer, fault: str, reason: str) -> None:
    """A forecast that is not whole, finite and the one asked for must never reach the weights."""
    repeated = fault in ("busy", "html", "close", "unavailable")  # what the client asks for again by itself
    faulty.faults["forecast"].extend([fault] * (3 if repeated else 1))
    faulty.retry_after = "0.05"
    model, optimizer, nowcast = start(faulty)
    with nowcast:
        train(model, optimizer, range(FIRST), nowcast)
        assert torch.equal(flat(model), plain(FIRST))
        until(lambda: nowcast._forecasts is not None and nowcast._forecasts.sender._registered)  # if it was held to be gone
        train(model, optimizer, range(FIRST, STEPS), nowcast)
    assert not faulty.faults["forecast"]
    assert nowcast.summary()["reasons"][reason] >= 1
    assert nowcast.summary()["nowcasts"]["used"] >= len(TAKEN_UP) - 2  # one more may have been asked for during the outage
    assert set(nowcast.summary()["reasons"]) == {reason}


@pytest.mark.parametrize(
    ("call", "fault"),
    [("register", "busy"), ("send", "close"), ("forecast", "unavailable"), ("forecast", "html"), ("forecast", "close")],
)
def test_a_passing_fault_costs_nothing(faulty: FaultyServer, call: str, fault: str) -> None:
    """One lost packet or a moment of load must not cost a nowcast."""
    faulty.faults[call].append(fault)
    faulty.retry_after = "0.05"
    assert run(faulty)["nowcasts"] == ALL


@pytest.mark.parametrize(("call", "fault"), [("forecast", "hang"), ("forecast", "trickle"), ("send", "hang")])
def test_training_does_not_wait_for_a_server_that_hangs(faulty: FaultyServer, call: str, fault: str) -> None:
    """A server that answers never, or byte by byte, costs pushes; a run that waited would cost the cluster."""
    faulty.faults[call].extend([fault] * 100)
    model, optimizer, nowcast = start(faulty, max_steps=200)
    with nowcast:
        train(model, optimizer, range(100))
        summary = nowcast.summary()
        assert set(summary["reasons"]) <= {"late", "history_missing"}
        assert summary["nowcasts"]["used"] == 0
        assert summary["waited_s"] < 0.5
        ended = time.monotonic()
    assert time.monotonic() - ended < 5
    assert torch.equal(flat(model), plain(100))


def test_an_upload_may_take_longer_than_any_other_call(faulty: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large snapshot over a slow link that is cut off at the timeout, and begun anew, never arrives."""
    monkeypatch.setattr(sender, "SLOWEST_RATE", 5_000)
    model = nn.Linear(256, 256)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with closing(CutNetwork(faulty.port)) as network:
        network.slow(3600)  # to a tenth of a megabyte a second, or less
        with Nowcast(model, optimizer, interval=1, server=Server(network.url, timeout_s=0.5)) as nowcast:
            optimizer.step()
            begun = time.monotonic()
            until(lambda: not nowcast.in_flight)
            assert time.monotonic() - begun > 0.5
    assert nowcast.summary()["server"]["lost"] == 0
    assert faulty.calls.count("send") == 1


def test_a_forgotten_job_is_registered_and_its_context_sent_again(faulty: FaultyServer) -> None:
    """A server that restarts between two calls has lost everything; the worker has not."""
    model, optimizer, nowcast = start(faulty)
    with nowcast:
        train(model, optimizer, range(FULL - 1), nowcast)
        until(lambda: nowcast.in_flight == 0)
        faulty.jobs.clear()
        train(model, optimizer, range(FULL - 1, STEPS), nowcast)
    assert nowcast.summary()["nowcasts"] == ALL
    assert faulty.calls.count("register") == 2
    assert sorted(faulty.jobs[nowcast.job])[:5] == list(range(INTERVAL, FULL + 1, INTERVAL))


def test_lost_snapshots_are_sent_again(faulty: FaultyServer) -> None:
    """`history_missing` names what a server has lost; the worker keeps it for this very case."""
    faulty.faults["forecast"].append("history_missing")
    assert run(faulty)["nowcasts"] == ALL
    assert faulty.calls.count("send") == STEPS // INTERVAL + FULL // INTERVAL


@pytest.mark.parametrize("fault", ["unknown_job", "history_missing", "snapshot_conflict"])
def test_a_server_that_never_learns_is_given_up(faulty: FaultyServer, fault: str) -> None:
    """Resending for ever would load the network."""
    call = "forecast" if fault == "history_missing" else "send"
    faulty.faults[call].extend([fault] * 1000)
    assert run(faulty)["reasons"] == {fault: len(TAKEN_UP)}
    assert len(faulty.calls) < 40 * len(TAKEN_UP)


@pytest.mark.parametrize("fault", ["too_large", "bad_value", "forbidden"])
def test_a_refused_snapshot_costs_its_contexts_alone(faulty: FaultyServer, fault: str) -> None:
    """A refusal must be told by its own reason, and not be repeated for a snapshot that cannot get better."""
    faulty.faults["send"].extend(["", fault])
    summary = run(faulty)
    assert summary["reasons"] == {fault: 2}  # of the contexts that the second snapshot is in
    assert summary["nowcasts"] == {"used": len(TAKEN_UP) - 2, "skipped": 2}
    assert faulty.calls.count("send") <= STEPS // INTERVAL


@pytest.mark.parametrize("fault", ["unauthorized", "out_of_memory_budget", "unknown_forecaster"])
def test_a_server_that_refuses_a_resumed_job_does_not_end_the_run(faulty: FaultyServer, fault: str) -> None:
    """A run is resumed because a node was lost, in the night; that the server filled up meanwhile must not be its end."""
    _, _, first = start(faulty, job="mine")
    faulty.faults["register"].append(fault)
    model, optimizer, nowcast = start(faulty, job="mine")
    nowcast.load_state_dict(first.state_dict())
    with nowcast:
        train(model, optimizer, range(INTERVAL))
        assert [(event.outcome, event.reason) for event in nowcast.events] == [("lost", fault)]
        until(lambda: nowcast._forecasts is not None and nowcast._forecasts.sender._registered)
        train(model, optimizer, range(INTERVAL, STEPS), nowcast)
    assert nowcast.summary()["nowcasts"] == ALL
    assert nowcast.summary()["server"] == {"lost": 1, "back": 1}
