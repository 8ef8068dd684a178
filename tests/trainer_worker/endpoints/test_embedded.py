"""Forecasts in the process that trains."""

import threading
from collections.abc import Sequence
from typing import Any

import torch
from small_runs import network

from protos.messages import JobSpec
from protos.wiring import Wiring
from trainer_worker.endpoints.deadline import Deadline
from trainer_worker.endpoints.embedded import EmbeddedEndpoint
from trainer_worker.wiring import wire


def test_training_that_goes_on_does_not_write_into_a_forecast() -> None:
    """Where training does not wait, the next snapshots lie where those of a slow forecast did."""
    begun, released = threading.Event(), threading.Event()

    class Slow:
        def forecast(self, wiring: Wiring, states: Sequence[torch.Tensor], horizons: Sequence[int]) -> torch.Tensor:
            begun.set()
            assert released.wait(10)
            return states[-1].repeat(len(horizons), 1)

    spec = JobSpec(wiring=wire(network()), context=2, interval=1, forecaster="last")
    forecaster: Any = Slow()
    endpoint, never = EmbeddedEndpoint(forecaster), Deadline(60)
    endpoint.register(spec, replace=False, deadline=never)
    rows = torch.arange(2.0)[:, None].repeat(1, spec.wiring.size)
    for step, row in enumerate(rows):
        endpoint.send(step, row, deadline=never)
    out = torch.empty(1, spec.wiring.size)
    thread = threading.Thread(target=endpoint.forecast, args=(1, (1,), out), kwargs={"deadline": never})
    thread.start()
    assert begun.wait(10)
    rows.fill_(99)
    released.set()
    thread.join(10)
    assert (out == 1).all()
