"""Two live runs with one job id, against a real server."""

import logging

import pytest
import torch
from server_process import ServerProcess
from small_runs import FIRST, STEPS, TAKEN_UP, adam, flat, make, network, train

from trainer_worker import Server


class Run:
    """Under the id `shared`."""

    def __init__(self, server: ServerProcess, seed: int) -> None:
        self.model = network(seed)
        self.optimizer = adam(self.model)
        self.index = 0
        reached = Server(server.url, job="shared", timeout_s=10)
        self.nowcast = make(self.model, self.optimizer, reached, forecaster="linear")

    def train(self, steps: int) -> None:
        train(self.model, self.optimizer, range(self.index, self.index + steps), self.nowcast)
        self.index += steps


def test_the_run_that_began_last_has_the_job(server: ServerProcess, caplog: pytest.LogCaptureFixture) -> None:
    """Two runs that feed one history would both be pushed to where neither is going."""
    alone, first, second = Run(server, 1), Run(server, 0), Run(server, 1)
    with alone.nowcast:
        alone.train(STEPS)
    with first.nowcast:
        first.train(FIRST + 1)
        with second.nowcast:
            for _ in range(STEPS):  # in turns, so that each would spoil the other's history
                second.train(1)
                first.train(first.index < STEPS)
    used = first.nowcast.summary()["nowcasts"]["used"]
    assert used in (1, 2)  # one was asked for before it lost the job
    assert first.nowcast.summary()["reasons"] == {"run_conflict": len(TAKEN_UP) - used}
    assert second.nowcast.summary()["nowcasts"] == {"used": len(TAKEN_UP), "skipped": 0}
    assert torch.equal(flat(second.model), flat(alone.model))
    assert sum(record.levelno == logging.ERROR for record in caplog.records) == 1
