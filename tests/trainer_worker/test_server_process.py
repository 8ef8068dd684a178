"""Against real server processes: the same bits as embedded, and a server that is killed and comes back."""

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CHECKPOINTS
from server_process import ServerProcess
from small_runs import FULL, INTERVAL, STEADY, STEPS, TAKEN_UP, adam, flat, make, network, plain, settle, step

from trainer_worker import Nowcast, Server


def trained(server: Server, **options: Any) -> tuple[torch.Tensor, dict[str, Any]]:
    model = network()
    optimizer = adam(model)
    with make(model, optimizer, server, **options) as nowcast:
        for index in range(STEPS):
            step(model, optimizer, index)
            settle(nowcast)
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


def test_a_server_that_is_down_from_the_start_costs_pushes_alone(start_server: Callable[..., ServerProcess]) -> None:
    """The steps before it comes are those of a plain run, and nobody has to restart anything afterwards."""
    process = ServerProcess()
    model = network()
    optimizer = adam(model)
    with make(model, optimizer, process.url, forecaster="linear", max_steps=10_000) as nowcast:
        for index in range(2 * FULL):
            step(model, optimizer, index)
        assert torch.equal(flat(model), plain(2 * FULL))
        process.start()
        train_until(lambda: nowcast.summary()["nowcasts"]["used"] > 0, model, optimizer, nowcast)
    assert nowcast.summary()["server"] == {"lost": 1, "back": 1}
    process.kill()


class Slow(torch.nn.Module):
    """Two million parameters: an upload that can be interrupted."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(8, 2048)
        self.wide = torch.nn.Linear(2048, 1024)
        self.last = torch.nn.Linear(1024, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.last(self.wide(self.first(inputs).relu()).relu())  # type: ignore[no-any-return]


def train_until(
    condition: Callable[[], bool], model: torch.nn.Module, optimizer: torch.optim.Optimizer, nowcast: Nowcast, *, wait: bool = True
) -> None:
    """Train until it is so; each step waits for the answer that is due, at most a little."""
    deadline = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        step(model, optimizer, nowcast.steps)
        request = nowcast._boundaries._asked
        if wait and request is not None:
            request.done.wait(0.5)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["upload", "between"])
def test_a_killed_server_costs_pushes_and_its_return_brings_them_back(
    start_server: Callable[..., ServerProcess], moment: str
) -> None:
    """A shared server restarts now and then; no run may end or be corrupted by it, or need a hand afterwards."""
    process = start_server()
    torch.manual_seed(0)
    model = Slow()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    reached = Server(process.url, timeout_s=5)
    nowcast = make(model, optimizer, reached, forecaster="linear", max_steps=100_000, push=STEADY)

    def used() -> int:
        return int(nowcast.summary()["nowcasts"]["used"])

    with nowcast:
        train_until(lambda: used() >= 1, model, optimizer, nowcast)
        if moment == "between":
            train_until(lambda: nowcast.steps % INTERVAL == 1, model, optimizer, nowcast)
            settle(nowcast)
            process.kill()
        else:  # it stops half way through what it is doing, and dies there
            train_until(lambda: nowcast.steps % INTERVAL == 0, model, optimizer, nowcast, wait=False)
            process.signal(signal.SIGSTOP)
            threading.Timer(0.3, process.kill).start()
        train_until(lambda: nowcast.summary()["reasons"].get("server_unavailable", 0) > 0, model, optimizer, nowcast)
        assert set(nowcast.summary()["reasons"]) <= {"server_unavailable", "late", "history_missing"}
        assert flat(model).isfinite().all()
        process.start()
        before = used()
        train_until(lambda: used() > before, model, optimizer, nowcast)
    summary = nowcast.summary()
    assert summary["server"]["lost"] >= 1
    assert summary["server"]["back"] == summary["server"]["lost"]
    assert summary["nowcasts"]["skipped"] == sum(summary["reasons"].values())
    assert [event.outcome for event in nowcast.events if event.kind == "server"][:2] == ["lost", "back"]
    process.kill()
