"""Forecasts in the process that trains."""

import threading
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from small_runs import network

from protos.errors import HistoryMissing, OutOfMemoryBudget, UnknownJob
from protos.messages import JobSpec
from protos.wiring import Wiring
from trainer_worker.endpoints import embedded
from trainer_worker.endpoints.deadline import Deadline
from trainer_worker.endpoints.embedded import EmbeddedEndpoint, load_embedded
from trainer_worker.endpoints.endpoint import Asked
from trainer_worker.wiring import wire

NEVER = Deadline(60)


def test_only_the_context_is_kept() -> None:
    """All snapshots of a run would fill the memory; and what is asked for must be what was sent."""
    spec = JobSpec(wiring=wire(network()), context=2, forecaster="last")
    endpoint = EmbeddedEndpoint(load_embedded("last", device=torch.device("cpu")))
    out = torch.empty(1, spec.wiring.size)
    with pytest.raises(UnknownJob):
        endpoint.forecast(Asked((1, 2), (1,)), out, deadline=NEVER)
    endpoint.register(spec, replace=False, deadline=NEVER)
    for step in (1, 2, 3):
        endpoint.send(step, torch.full((spec.wiring.size,), float(step)), deadline=NEVER)
    endpoint.forecast(Asked((2, 3)), out, deadline=NEVER)
    assert (out == 3).all()
    with pytest.raises(HistoryMissing) as caught:
        endpoint.forecast(Asked((1, 2), (1,)), out, deadline=NEVER)
    assert caught.value.extra["missing"] == [1]


def test_training_that_goes_on_does_not_write_into_a_forecast() -> None:
    """The next snapshots may lie where those of a slow forecast did, if they are not in use any more."""
    begun, released = threading.Event(), threading.Event()

    class Slow:
        glide_horizon = 1
        device = None

        def forecast(self, wiring: Wiring, states: Sequence[torch.Tensor], horizons: Sequence[int]) -> torch.Tensor:
            begun.set()
            assert released.wait(10)
            return states[-1].repeat(len(horizons), 1)

    spec = JobSpec(wiring=wire(network()), context=2, forecaster="last")
    forecaster: Any = Slow()
    endpoint = EmbeddedEndpoint(forecaster)
    endpoint.register(spec, replace=False, deadline=NEVER)
    rows = torch.arange(3.0)[:, None].repeat(1, spec.wiring.size)
    for step in (0, 1):
        endpoint.send(step, rows[step], deadline=NEVER)
    out = torch.empty(1, spec.wiring.size)
    thread = threading.Thread(target=endpoint.forecast, args=(Asked((0, 1), (1,)), out), kwargs={"deadline": NEVER})
    thread.start()
    assert begun.wait(10)
    endpoint.send(2, rows[2], deadline=NEVER)  # 0 has left the history
    rows[0].fill_(99)
    released.set()
    thread.join(10)
    assert (out == 1).all()


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
    spec = JobSpec(wiring=wire(network()), context=3, forecaster="last")
    forecaster: Any = OnDevice()
    endpoint, out = EmbeddedEndpoint(forecaster), torch.empty(1, spec.wiring.size)
    endpoint.register(spec, replace=False, deadline=NEVER)
    for step in range(4):
        endpoint.send(step, torch.zeros(spec.wiring.size), deadline=NEVER)
        if step >= 2:
            endpoint.forecast(Asked((step - 2, step - 1, step), (1,)), out, deadline=NEVER)
    first, second = forecaster.seen
    assert all(state.device.type == "meta" for state in (*first, *second))
    assert [one is other for one, other in zip(first[1:], second[:2], strict=True)] == [True, True]
    endpoint.register(spec, replace=True, deadline=NEVER)
    for step in (1, 2, 3):
        endpoint.send(step, torch.ones(spec.wiring.size), deadline=NEVER)
    endpoint.forecast(Asked((1, 2, 3), (1,)), out, deadline=NEVER)
    assert not any(one is other for one, other in zip(forecaster.seen[2], second, strict=True))


def test_training_comes_first_on_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forecast of a large model would take the memory that the next training step needs."""
    spec = JobSpec(wiring=wire(network()), context=2, forecaster="last")
    forecaster: Any = OnDevice()
    endpoint, out = EmbeddedEndpoint(forecaster), torch.empty(1, spec.wiring.size)
    endpoint.register(spec, replace=False, deadline=NEVER)
    for step in (0, 1):
        endpoint.send(step, torch.zeros(spec.wiring.size), deadline=NEVER)
    needed_bytes = 1000 + 4 * 3 * spec.wiring.size
    monkeypatch.setattr(embedded, "free_memory", lambda device: 2 * needed_bytes - 2)
    with pytest.raises(OutOfMemoryBudget, match="where training leaves"):
        endpoint.forecast(Asked((0, 1), (1,)), out, deadline=NEVER)
    monkeypatch.setattr(embedded, "free_memory", lambda device: 2 * needed_bytes)
    endpoint.forecast(Asked((0, 1), (1,)), out, deadline=NEVER)
    assert len(forecaster.seen) == 1


def test_what_the_host_does_in_passing_stays_there() -> None:
    """The line through five snapshots would take their memory on the device that trains."""
    assert load_embedded("linear", device=torch.device("meta")).device is None
