"""The background thread by itself, with an endpoint in this process."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, repeat

import pytest
import torch
from small_runs import Fails, ScriptedEndpoint
from waiting import until

from protos.errors import BadValue, DeadlineExceeded, HistoryMissing, NowcastError, SnapshotConflict, Unavailable, UnknownJob
from protos.messages import JobSpec, Progress
from protos.wiring import Parameter, Wiring
from trainer_worker.endpoints.endpoint import Deadline
from trainer_worker.endpoints.sender import Request, Sender
from trainer_worker.snapshots import Snapshot

SPEC = JobSpec(wiring=Wiring((Parameter("w", (4,)),), 1, ()), context=2, forecaster="last")
LAST = Progress(step=99)


@contextmanager
def sending(endpoint: ScriptedEndpoint) -> Iterator[Sender]:
    """A sender at work."""
    sender = Sender(endpoint, SPEC, timeout_s=30.0)
    sender.open(resumed=False)
    try:
        yield sender
    finally:
        sender.stop(lambda: LAST)


def offer(sender: Sender, *steps: int, value: float = 0.0) -> None:
    """Snapshots that hold `value` throughout."""
    for step in steps:
        sender.offer(Snapshot(step, torch.full((4,), value)))


def request(sender: Sender) -> Request:
    """For a forecast from the present context."""
    context = sender.context
    return Request(context, (1,), Deadline(20.0), lambda forecast: forecast)


def ask(sender: Sender) -> Request:
    """Ask, and wait for the answer."""
    asked = request(sender)
    sender.ask(asked)
    assert asked.done.wait(20.0)
    return asked


def test_a_request_goes_along_with_its_snapshot() -> None:
    """A boundary would cost two round trips; or a slow link would get each snapshot cut off for a forecast that comes too late."""
    fails = Fails(forecast=[DeadlineExceeded("slow")])
    endpoint = ScriptedEndpoint(fail=fails)

    def boundary(step: int) -> list[str]:
        before = len(fails.begun)
        sender.offer(Snapshot(step, torch.zeros(4)), lambda: Progress(step=step), asked=True)
        ask(sender)
        until(lambda: sender.in_flight == 0)
        return ["together" if call == "forecast" and not endpoint.apart else call for call in fails.begun[before:]]

    with sending(endpoint) as sender:
        offer(sender, 10)
        until(lambda: sender.in_flight == 0)
        assert boundary(20) == ["send", "together", "send"]  # which was too slow
        assert boundary(30) == ["send", "forecast"]
        assert boundary(40) == ["send", "together"]
    assert [progress.step for progress in endpoint.told] == [20, 30, 40]


def test_a_request_takes_the_place_of_one_that_still_waits() -> None:
    """A server that comes back after ten intervals would make ten forecasts that nobody wants, the newest last."""
    gate = threading.Event()
    endpoint = ScriptedEndpoint(fail=Fails(send=[gate]))
    with sending(endpoint) as sender:
        offer(sender, 10, 20)
        first = request(sender)
        sender.ask(first)
        sender.give_up(first)
        offer(sender, 30)
        second = request(sender)
        sender.ask(second)
        gate.set()
        assert second.done.wait(20)
    assert endpoint.asked == [(20, 30)]
    assert second.error is None
    assert not first.done.is_set()


def test_a_checkpoint_loaded_while_the_job_registers_again_is_not_lost() -> None:
    """The forecast would be made from the course that the run has gone back from, and nothing would tell."""
    gate = threading.Event()
    fails = Fails(forecast=[UnknownJob("restarted")], register=[None, gate])
    endpoint = ScriptedEndpoint(fail=fails)
    with sending(endpoint) as sender:
        offer(sender, 10, 20)
        until(lambda: sender.in_flight == 0)
        sender.ask(request(sender))
        until(lambda: fails.begun.count("register") == 2)
        sender.restart()
        gate.set()
        until(lambda: sender._registered)
        offer(sender, 10, 20, value=1.0)
        assert ask(sender).error is None
    assert endpoint.history[10].tolist() == endpoint.history[20].tolist() == [1.0] * 4


def test_progress_is_told_once_and_with_the_newest_snapshot() -> None:
    """A server that asks for the context again would take old news for a run that has gone back, and drop its curve."""
    gate = threading.Event()
    fails = Fails(send=[gate], forecast=[HistoryMissing("lost", missing=[20, 30])])
    endpoint = ScriptedEndpoint(fail=fails)
    with sending(endpoint) as sender:
        for step in (10, 20, 30):
            sender.offer(Snapshot(step, torch.zeros(4)), lambda step=step: Progress(step=step))  # type: ignore[misc]
            until(lambda: "send" in fails.begun)
        gate.set()
        assert ask(sender).error is None
    assert [progress.step for progress in endpoint.told] == [10, 30]  # 20 was late


@pytest.mark.parametrize("error", [UnknownJob("?"), SnapshotConflict("?"), HistoryMissing("?", missing=[10])])
def test_a_registration_is_not_repeated_without_a_pause(error: NowcastError) -> None:
    """An address that leads to another service would be called as fast as a core can, for as long as the run lasts."""
    fails = Fails(forecast=[UnknownJob("restarted")], register=chain([None], repeat(error)))
    with sending(ScriptedEndpoint(fail=fails)) as sender:
        offer(sender, 10, 20)
        assert ask(sender).error is error
        time.sleep(0.2)
        assert fails.begun.count("register") <= 4


def test_a_server_that_was_down_for_a_night_is_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread would end after some 75 minutes of an outage, and the run go without nowcasts from then on."""
    monkeypatch.setattr("trainer_worker.endpoints.sender.LONGEST_PAUSE_S", 0.0)
    fails = Fails(register=[Unavailable("down")] * 1100)
    with sending(ScriptedEndpoint(fail=fails)) as sender:
        until(lambda: sender._registered)
        offer(sender, 10, 20)
        assert ask(sender).error is None


def test_a_refused_snapshot_that_has_left_the_context_does_not_spoil_the_next() -> None:
    """A nowcast would be skipped for a snapshot that it is not made from."""
    reached, gate = threading.Event(), threading.Event()

    def fail(call: str) -> None:
        if call == "send" and not reached.is_set():
            reached.set()
            assert gate.wait(20.0)
            raise BadValue("NaN")

    with sending(ScriptedEndpoint(fail=fail)) as sender:
        offer(sender, 10)
        assert reached.wait(20.0)
        offer(sender, 30, 40)
        gate.set()
        assert ask(sender).error is None
        assert {snapshot.step for snapshot in sender.in_use()} == {30, 40}


def test_the_end_is_not_told_to_a_server_that_is_gone() -> None:
    """A run would end seconds later for it."""
    fails = Fails(forecast=[Unavailable("gone")], register=chain([None], repeat(Unavailable("down"))))
    endpoint = ScriptedEndpoint(fail=fails)
    with sending(endpoint) as sender:
        offer(sender, 10, 20)
        assert ask(sender).error is not None
    assert "finish" not in fails.begun
    assert endpoint.closed
