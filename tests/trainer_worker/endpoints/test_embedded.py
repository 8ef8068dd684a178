"""Forecasts in the process that trains."""

import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_runs import network

from protos.errors import HistoryMissing, OutOfMemoryBudget
from protos.messages import JobSpec
from protos.wiring import Wiring
from trainer_worker.endpoints import embedded
from trainer_worker.endpoints.embedded import EmbeddedEndpoint, load_embedded
from trainer_worker.endpoints.endpoint import Asked, Deadline
from trainer_worker.wiring import wire

NEVER = Deadline(60)
WIRING = wire(network())


def test_only_the_context_is_kept() -> None:
    """All snapshots of a run would fill the memory; and what is asked for must be what was sent."""
    forecaster = load_embedded("last", device=torch.device("cpu"))
    endpoint, out = started(forecaster, *(torch.full((WIRING.size,), float(step)) for step in range(3)))
    endpoint.forecast(Asked((1, 2)), out, deadline=NEVER)
    assert (out == 2).all()
    with pytest.raises(HistoryMissing) as caught:
        endpoint.forecast(Asked((0, 1), (1,)), out, deadline=NEVER)
    assert caught.value.extra["missing"] == [0]


def test_training_that_goes_on_does_not_write_into_a_forecast() -> None:
    """The next snapshots may lie where those of a slow forecast did, if they are not in use any more."""
    begun, released = threading.Event(), threading.Event()

    def slow(wiring: Wiring, states: Sequence[torch.Tensor], horizons: Sequence[int]) -> torch.Tensor:
        begun.set()
        assert released.wait(10)
        return states[-1].repeat(len(horizons), 1)

    rows = torch.arange(3.0)[:, None].repeat(1, WIRING.size)
    endpoint, out = started(SimpleNamespace(glide_horizon=1, device=None, forecast=slow), *rows[:2])
    thread = threading.Thread(target=endpoint.forecast, args=(Asked((0, 1), (1,)), out), kwargs={"deadline": NEVER})
    thread.start()
    assert begun.wait(10)
    endpoint.send(2, rows[2], deadline=NEVER)  # 0 has left the history
    rows[0].fill_(99)
    released.set()
    thread.join(10)
    assert (out == 1).all()


def started(forecaster: Any, *snapshots: torch.Tensor, context: int = 2) -> tuple[EmbeddedEndpoint, torch.Tensor]:
    """An endpoint that holds snapshots of steps 0, 1, …, and memory for a forecast."""
    endpoint = EmbeddedEndpoint(forecaster, JobSpec(wiring=WIRING, context=context, forecaster="last"))
    for step, snapshot in enumerate(snapshots):
        endpoint.send(step, snapshot, deadline=NEVER)
    return endpoint, torch.empty(1, WIRING.size)


class OnDevice:
    """Forecasts on a device that has no memory of its own, and remembers what it was given."""

    glide_horizon = 1
    device = torch.device("meta")
    seen: list[tuple[torch.Tensor, ...]]

    def __init__(self) -> None:
        self.seen = []

    def working_bytes(self, wiring: Wiring, *, context: int) -> int:
        return 1000

    def forecast(self, wiring: Wiring, states: Sequence[torch.Tensor], horizons: Sequence[int]) -> torch.Tensor:
        self.seen.append(tuple(states))
        return torch.zeros(len(horizons), wiring.size)


def test_a_device_is_sent_each_snapshot_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each nowcast would copy all five snapshots of a large model to the device it trains on."""
    monkeypatch.setattr(embedded, "free_memory", lambda device: 10**9)
    forecaster = OnDevice()
    endpoint, out = started(forecaster, *torch.zeros(2, WIRING.size), context=3)
    for step in (2, 3):
        endpoint.send(step, torch.zeros(WIRING.size), deadline=NEVER)
        endpoint.forecast(Asked((step - 2, step - 1, step), (1,)), out, deadline=NEVER)
    first, second = forecaster.seen
    assert all(state.device.type == "meta" for state in (*first, *second))
    assert [one is other for one, other in zip(first[1:], second[:2], strict=True)] == [True, True]
    endpoint.register(JobSpec(wiring=WIRING, context=3, forecaster="last"), replace=True, deadline=NEVER)
    for step in (1, 2, 3):
        endpoint.send(step, torch.ones(WIRING.size), deadline=NEVER)
    endpoint.forecast(Asked((1, 2, 3), (1,)), out, deadline=NEVER)
    assert not any(one is other for one, other in zip(forecaster.seen[2], second, strict=True))


def test_training_comes_first_on_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forecast of a large model would take the memory that the next training step needs."""
    forecaster = OnDevice()
    endpoint, out = started(forecaster, *torch.zeros(2, WIRING.size))
    needed_bytes = 1000 + 4 * 3 * WIRING.size
    monkeypatch.setattr(embedded, "free_memory", lambda device: 2 * needed_bytes - 2)
    with pytest.raises(OutOfMemoryBudget, match="where training leaves"):
        endpoint.forecast(Asked((0, 1), (1,)), out, deadline=NEVER)
    monkeypatch.setattr(embedded, "free_memory", lambda device: 2 * needed_bytes)
    endpoint.forecast(Asked((0, 1), (1,)), out, deadline=NEVER)
    assert len(forecaster.seen) == 1


def test_what_the_host_does_in_passing_stays_there() -> None:
    """The line through five snapshots would take their memory on the device that trains."""
    assert load_embedded("linear", device=torch.device("cuda")).device is None
    assert str(load_embedded("nino", device=torch.device("mps")).device) == "cpu"  # whose free memory torch does not tell
