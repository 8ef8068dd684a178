"""Against real server processes: the same bits as embedded, and a server that is killed and comes back."""

import logging
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from server_process import CHECKPOINTS, ServerProcess
from small_runs import FIRST, FULL, INTERVAL, STEADY, STEPS, TAKEN_UP, adam, flat, learner, make, network, step, train
from torch import nn

from trainer_worker import Server
from trainer_worker.endpoints import sender


def trained(server: Server, **options: Any) -> tuple[torch.Tensor, dict[str, Any]]:
    model, optimizer = learner()
    with make(model, optimizer, server, **options) as nowcast:
        train(model, optimizer, range(STEPS), nowcast)
    return flat(model), nowcast.summary()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("forecaster", ["spectral", "last", "linear", "wnn", "nino"])
def test_a_server_gives_the_same_bits_as_embedded_forecasts(
    shared: Path, server: ServerProcess, forecaster: str, dtype: Any
) -> None:
    """A run could not be reproduced at a desk if the cluster's server gave it other weights."""
    own = str(shared / "checkpoints" / CHECKPOINTS[forecaster]) if forecaster in CHECKPOINTS else forecaster
    embedded, mine = trained(Server("embedded", dtype=dtype), forecaster=own)
    remote, theirs = trained(Server(server.url, dtype=dtype), forecaster=forecaster)
    assert mine["nowcasts"] == theirs["nowcasts"] == {"used": len(TAKEN_UP), "skipped": 0}
    assert torch.equal(embedded, remote)


def slow() -> nn.Sequential:
    """Two million parameters: an upload that can be interrupted."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 2048), nn.ReLU(), nn.Linear(2048, 1024), nn.ReLU(), nn.Linear(1024, 2))


class Run:
    """Trains until something is so; each step waits for the answer that is due, at most a little."""

    def __init__(self, url: str) -> None:
        self.model = slow()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3)
        reached = Server(url, timeout_s=5)
        self.nowcast = make(self.model, self.optimizer, reached, forecaster="linear", max_steps=100_000, push=STEADY)

    @property
    def used(self) -> int:
        return int(self.nowcast.summary()["nowcasts"]["used"])

    @property
    def server(self) -> dict[str, int]:
        """How often it was lost, and came back."""
        return self.nowcast.summary()["server"]  # type: ignore[no-any-return]

    def until(self, condition: Callable[[], bool], *, wait: bool = True) -> None:
        deadline = time.monotonic() + 90
        while not condition():
            assert time.monotonic() < deadline, "it did not happen in time"
            step(self.model, self.optimizer, self.nowcast.steps)
            request = self.nowcast._boundaries._asked
            if wait and request is not None:
                request.done.wait(0.5)


@pytest.mark.slow
def test_a_server_that_comes_late_and_is_killed_costs_pushes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shared server restarts now and then; no run may end or be corrupted by it, or need a hand afterwards."""
    monkeypatch.setattr(sender, "LONGEST_PAUSE_S", 0.3)
    process = ServerProcess()
    run = Run(process.url)
    plain = slow()
    optimizer = torch.optim.SGD(plain.parameters(), lr=1e-3)
    with run.nowcast as nowcast:
        for index in range(2 * FULL):
            step(run.model, run.optimizer, index)
            step(plain, optimizer, index)
        assert torch.equal(flat(run.model), flat(plain))
        process.start()
        run.until(lambda: run.used > 0)
        run.until(lambda: nowcast.steps % INTERVAL == 0, wait=False)
        process.signal(signal.SIGSTOP)  # half way through what it is doing
        threading.Timer(0.3, process.kill).start()
        run.until(lambda: run.server["lost"] > 1)
        assert flat(run.model).isfinite().all()
        process.start()
        before = run.used
        run.until(lambda: run.used > before)
    process.kill()
    summary = nowcast.summary()
    assert set(summary["reasons"]) <= {"server_unavailable", "late", "history_missing"}
    assert summary["server"]["back"] == summary["server"]["lost"] >= 2
    assert summary["nowcasts"]["skipped"] == sum(summary["reasons"].values())
    assert [event.outcome for event in nowcast.events if event.kind == "server"][:2] == ["lost", "back"]


def test_the_run_that_began_last_has_the_job(server: ServerProcess, caplog: pytest.LogCaptureFixture) -> None:
    """Two runs that feed one history would both be pushed to where neither is going."""

    def begun(seed: int) -> SimpleNamespace:
        model = network(seed)
        optimizer, reached = adam(model), Server(server.url, job="shared", timeout_s=10)
        return SimpleNamespace(model=model, optimizer=optimizer, nowcast=make(model, optimizer, reached, forecaster="linear"))

    def go_on(run: SimpleNamespace, start: int, stop: int) -> None:
        train(run.model, run.optimizer, range(start, min(stop, STEPS)), run.nowcast)

    alone, first, second = begun(1), begun(0), begun(1)
    with alone.nowcast:
        go_on(alone, 0, STEPS)
    with first.nowcast:
        go_on(first, 0, FIRST + 1)
        with second.nowcast:
            for index in range(STEPS):  # in turns, so that each would spoil the other's history
                go_on(second, index, index + 1)
                go_on(first, index + FIRST + 1, index + FIRST + 2)
    used = first.nowcast.summary()["nowcasts"]["used"]
    assert used in (1, 2)  # one was asked for before it lost the job
    assert first.nowcast.summary()["reasons"] == {"run_conflict": len(TAKEN_UP) - used}
    assert second.nowcast.summary()["nowcasts"] == {"used": len(TAKEN_UP), "skipped": 0}
    assert torch.equal(flat(second.model), flat(alone.model))
    assert sum(record.levelno == logging.ERROR for record in caplog.records) == 1
