"""The background thread by itself, with an endpoint in this process."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from small_runs import ShiftingEndpoint
from waiting import until

from protos.errors import (
    BadRequest,
    BadValue,
    DeadlineExceeded,
    HistoryMissing,
    NowcastError,
    SnapshotConflict,
    Unavailable,
    UnknownJob,
)
from protos.messages import JobSpec, Outcome
from protos.wiring import Parameter, Wiring
from trainer_worker.endpoints.deadline import Deadline
from trainer_worker.endpoints.sender import Request, Sender
from trainer_worker.weights.snapshots import Snapshot

INTERVAL = 10
SPEC = JobSpec(wiring=Wiring((Parameter("w", (4,)),), 1, ()), context=2, interval=INTERVAL, forecaster="last")


@contextmanager
def sending(endpoint: ShiftingEndpoint) -> Iterator[Sender]:
    """A sender at work."""
    sender = Sender(endpoint, SPEC, timeout_s=30.0)
    sender.open(resumed=False)
    try:
        yield sender
    finally:
        sender.stop()


def offer(sender: Sender, *steps: int, value: float = 0.0) -> None:
    """Snapshots that hold `value` throughout."""
    for step in steps:
        sender.offer(Snapshot(step, torch.full((4,), value)))


def ask(sender: Sender, step: int) -> Request:
    """Ask for the next interval, and wait for the answer."""
    request = Request(step, (1,), torch.empty(1, 4), Deadline(20.0))
    sender.ask(request)
    assert request.done.wait(20.0)
    return request


class Fails:
    """What the next calls of each name meet: an error, or a gate that holds them up until it is opened."""

    def __init__(self, **calls: list[Exception | threading.Event]) -> None:
        self.calls = calls
        self.begun: list[str] = []

    def __call__(self, call: str) -> None:
        self.begun.append(call)
        if not self.calls.get(call):
            return
        met = self.calls[call].pop(0)
        if isinstance(met, Exception):
            raise met
        assert met.wait(20.0)


def test_a_rollback_while_the_job_registers_again_is_not_lost() -> None:
    """The forecast would be made from the course that the run has gone back from, and nothing would tell."""
    fails = Fails()
    endpoint = ShiftingEndpoint(fail=fails)
    with sending(endpoint) as sender:
        offer(sender, 10, 20)
        until(lambda: sender.in_flight == 0)
        gate = threading.Event()
        fails.calls = {"forecast": [UnknownJob("restarted")], "register": [gate]}
        sender.ask(Request(20, (1,), torch.empty(1, 4), Deadline(20.0)))
        until(lambda: fails.begun.count("register") == 2)
        sender.reset()
        sender.restart()
        gate.set()
        until(lambda: sender._registered)
        offer(sender, 10, 20, value=1.0)
        assert ask(sender, 20).error is None
    assert endpoint.history[10].tolist() == endpoint.history[20].tolist() == [1.0] * 4


@pytest.mark.parametrize("error", [UnknownJob("?"), SnapshotConflict("?"), HistoryMissing("?", missing=[10])])
def test_a_registration_is_not_repeated_without_a_pause(error: NowcastError) -> None:
    """An address that leads to another service would be called as fast as a core can, for as long as the run lasts."""
    fails = Fails(forecast=[UnknownJob("restarted")])
    with sending(ShiftingEndpoint(fail=fails)) as sender:
        offer(sender, 10, 20)
        fails.calls["register"] = [error] * 1000
        assert ask(sender, 20).error is error
        time.sleep(0.5)
        assert fails.begun.count("register") <= 5


def test_a_server_that_was_down_for_a_night_is_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread would end after some 75 minutes of an outage, and the run go without nowcasts from then on."""
    monkeypatch.setattr("trainer_worker.endpoints.sender.LONGEST_PAUSE_S", 0.0)
    fails = Fails(register=[Unavailable("down")] * 1100)
    with sending(ShiftingEndpoint(fail=fails)) as sender:
        until(lambda: sender._registered)
        offer(sender, 10, 20)
        assert ask(sender, 20).error is None


@pytest.mark.parametrize("error", [Unavailable("gone", retry_after_s="5"), HistoryMissing("lost", missing=10)])
def test_an_error_that_cannot_be_mended_does_not_end_the_thread(error: NowcastError) -> None:
    """Each nowcast to come would hold up training for its whole timeout, and nothing would tell why."""
    with sending(ShiftingEndpoint(fail=Fails(forecast=[error]))) as sender:
        offer(sender, 10, 20)
        failed = ask(sender, 20).error
        assert isinstance(failed, TypeError)
        assert ("lost", failed) in list(sender.news())
        until(lambda: sender._registered)
        assert ask(sender, 20).error is None


def test_a_refused_snapshot_of_the_last_context_does_not_spoil_the_next() -> None:
    """A nowcast would be skipped for a snapshot that it is not made from."""
    reached, gate = threading.Event(), threading.Event()

    def fail(call: str) -> None:
        if call == "send" and not reached.is_set():
            reached.set()
            assert gate.wait(20.0)
            raise BadValue("NaN")

    with sending(ShiftingEndpoint(fail=fail)) as sender:
        offer(sender, 10)
        assert reached.wait(20.0)
        sender.reset()
        offer(sender, 30, 40)
        gate.set()
        assert ask(sender, 40).error is None


@pytest.mark.parametrize("error", [Unavailable("gone"), UnknownJob("restarted"), DeadlineExceeded("slow"), NowcastError("broken")])
def test_an_outcome_outlives_an_outage(error: NowcastError) -> None:
    """Which jumps failed before a server went away would be missing from what it shows and fits forecasters to."""
    fails = Fails(report=[error])
    endpoint = ShiftingEndpoint(fail=fails)
    with sending(endpoint) as sender:
        for step in (10, 20):
            sender.report(Outcome(step=step, outcome="rejected", horizon=1))
        until(lambda: len(endpoint.outcomes) == 2)
    assert [outcome.step for outcome in endpoint.outcomes] == [10, 20]


@pytest.mark.parametrize("error", [Unavailable("gone"), UnknownJob("restarted"), BadRequest("no outcomes here")])
def test_an_outcome_that_is_never_taken_is_given_up(error: NowcastError) -> None:
    """The server would be held to be down for ever, and its forecasts lost, for something that training does not need."""
    fails = Fails(report=[error] * 1000)
    with sending(ShiftingEndpoint(fail=fails)) as sender:
        for step in (10, 20):
            sender.report(Outcome(step=step, outcome="rejected", horizon=1))
        until(lambda: not sender._outcomes)
        offer(sender, 30, 40)
        until(lambda: ask(sender, 40).error is None)
    assert fails.begun.count("report") <= 4
