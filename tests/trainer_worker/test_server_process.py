"""Against real server processes: the same bits as embedded, and a server that is killed and comes back."""

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from server_process import CHECKPOINTS, ServerProcess
from small_runs import FULL, INTERVAL, STEADY, STEPS, TAKEN_UP, flat, learner, make, settle, step, train
from torch import nn

from trainer_worker import Server
from trainer_worker.endpoints import sender


def trained(server: Server, **options: Any) -> tuple[torch.Tensor, dict[str, Any]]:
    model, optimizer = learner()
    with make(model, optimizer, server, **options) as nowcast:
        train(model, optimizer, range(STEPS), nowcast)
    return flat(model), nowcast.summary()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("forecaster", ["last", "linear", "average", "wnn", "nino"])
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
def test_a_server_that_comes_late_and_is_killed_twice_costs_pushes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
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
        for times, moment in enumerate(("between", "upload"), start=1):
            if moment == "between":
                run.until(lambda: nowcast.steps % INTERVAL == 1)
                settle(nowcast)
                process.kill()
            else:  # it stops half way through what it is doing, and dies there
                run.until(lambda: nowcast.steps % INTERVAL == 0, wait=False)
                process.signal(signal.SIGSTOP)
                threading.Timer(0.3, process.kill).start()
            run.until(lambda times=times: run.server["lost"] > times)  # type: ignore[misc]
            assert flat(run.model).isfinite().all()
            process.start()
            before = run.used
            run.until(lambda before=before: run.used > before)  # type: ignore[misc]
    process.kill()
    summary = nowcast.summary()
    assert set(summary["reasons"]) <= {"server_unavailable", "late", "history_missing"}
    assert summary["server"]["back"] == summary["server"]["lost"] >= 3
    assert summary["nowcasts"]["skipped"] == sum(summary["reasons"].values())
    assert [event.outcome for event in nowcast.events if event.kind == "server"][:2] == ["lost", "back"]
