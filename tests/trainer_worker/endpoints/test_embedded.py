"""Forecasts in the process that trains."""

import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_runs import network

from protos.errors import HistoryMissing
from protos.messages import JobSpec
from protos.wiring import Wiring
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
    with pytest.raises(HistoryMissing, check=lambda error: error.extra["missing"] == [0]):
        endpoint.forecast(Asked((0, 1), (1,)), out, deadline=NEVER)


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


def started(forecaster: Any, *snapshots: torch.Tensor) -> tuple[EmbeddedEndpoint, torch.Tensor]:
    """An endpoint that holds snapshots of steps 0, 1, …, and memory for a forecast."""
    endpoint = EmbeddedEndpoint(forecaster, JobSpec(wiring=WIRING, context=2, forecaster="last"))
    for step, snapshot in enumerate(snapshots):
        endpoint.send(step, snapshot, deadline=NEVER)
    return endpoint, torch.empty(1, WIRING.size)


def test_what_the_host_does_in_passing_stays_there() -> None:
    """The line through five snapshots would take their memory on the device that trains."""
    assert load_embedded("linear", device=torch.device("cuda")).device is None
    assert str(load_embedded("nino", device=torch.device("mps")).device) == "cpu"  # whose free memory torch does not tell
