"""Two live runs with one job id, against a real server."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from server_process import ServerProcess
from small_runs import CONTEXT, INTERVAL, PERIOD, flat, network, step

from trainer_worker import FixedHorizon, Nowcast

STEPS = 2 * PERIOD + 1


class Run:
    """Under the id `shared`."""

    def __init__(self, server: ServerProcess, seed: int) -> None:
        self.model = network(seed)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-2)
        self.index = 0
        options: dict[str, Any] = {"interval": INTERVAL, "context": CONTEXT, "policy": FixedHorizon(3), "max_steps": STEPS}
        self.nowcast = Nowcast(
            self.model, self.optimizer, server=server.url, job="shared", forecaster="linear", timeout_s=10, **options
        )

    def train(self, steps: int) -> None:
        for _ in range(steps):
            step(self.model, self.optimizer, self.index)
            self.index += 1


def test_the_run_that_began_last_has_the_job(start_server: Callable[..., ServerProcess], caplog: pytest.LogCaptureFixture) -> None:
    """Two runs that feed one history would both jump to weights that belong to neither."""
    server = start_server()
    alone, first, second = Run(server, 1), Run(server, 0), Run(server, 1)
    with alone.nowcast:
        alone.train(STEPS)
    with first.nowcast:
        first.train(PERIOD + INTERVAL + 1)
        with second.nowcast:
            assert "another run has this job" in caplog.text
            for _ in range(STEPS):  # in turns, so that each would spoil the other's history
                second.train(1)
                first.train(first.index < STEPS)
    assert first.nowcast.summary()["nowcasts"] == {"accepted": 1, "rejected": 0, "skipped": 1}
    assert first.nowcast.summary()["reasons"] == {"run_conflict": 1}
    assert second.nowcast.summary()["nowcasts"] == {"accepted": 2, "rejected": 0, "skipped": 0}
    assert torch.equal(flat(second.model), flat(alone.model))
    assert sum(record.levelno == logging.ERROR for record in caplog.records) == 1
    server.kill()
