"""Against real server processes: the same bits as embedded, and a server that is killed and comes back."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from server_process import ServerProcess
from small_runs import CONTEXT, INTERVAL, PERIOD, flat, network, step

from trainer_worker import FixedHorizon, Nowcast

STEPS = 2 * PERIOD + 1
CHECKPOINTS = {"nino": "nino_no_posw.pt", "wnn": "nino_mlp.pt"}


@pytest.fixture(scope="module")
def server(shared: Path, start_server: Callable[..., ServerProcess]) -> Iterator[ServerProcess]:
    """One with published weights and as many threads as this process."""
    weights = [option for name in CHECKPOINTS.values() for option in ("--checkpoint", str(shared / "checkpoints" / name))]
    process = start_server("--threads", "1", *weights)
    yield process
    process.kill()


def trained(**options: Any) -> tuple[torch.Tensor, dict[str, Any]]:
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    defaults = {"max_steps": STEPS, "interval": INTERVAL, "context": CONTEXT}
    with Nowcast(model, optimizer, **{**defaults, **options}) as nowcast:
        for index in range(STEPS):
            step(model, optimizer, index)
    return flat(model), nowcast.summary()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("forecaster", ["last", "linear", "average", "wnn", "nino"])
def test_a_server_gives_the_same_bits_as_embedded_forecasts(
    shared: Path, server: ServerProcess, forecaster: str, dtype: Any
) -> None:
    """A run could not be reproduced at a desk if the cluster's server gave it other weights."""
    checkpoint = str(shared / "checkpoints" / CHECKPOINTS[forecaster]) if forecaster in CHECKPOINTS else None
    embedded, mine = trained(forecaster=forecaster, dtype=dtype, checkpoint=checkpoint)
    remote, theirs = trained(forecaster=forecaster, dtype=dtype, server=server.url)
    assert mine["nowcasts"] == theirs["nowcasts"] == {"accepted": 2, "rejected": 0, "skipped": 0}
    assert torch.equal(embedded, remote)


class Slow(torch.nn.Module):
    """Two million parameters: an upload that can be interrupted."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(8, 2048)
        self.wide = torch.nn.Linear(2048, 1024)
        self.last = torch.nn.Linear(1024, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.last(self.wide(self.first(inputs).relu()).relu())  # type: ignore[no-any-return]


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["upload", "forecast", "between"])
def test_a_killed_server_costs_nowcasts_and_its_return_brings_them_back(
    start_server: Callable[..., ServerProcess], moment: str
) -> None:
    """A shared server restarts now and then; no run may end or be corrupted by it, or need a hand afterwards."""
    process = start_server()
    torch.manual_seed(0)
    model = Slow()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    steps = 40 * PERIOD
    nowcast = Nowcast(
        model,
        optimizer,
        server=process.url,
        max_steps=steps,
        interval=INTERVAL,
        policy=FixedHorizon(1),
        forecaster="linear",
        timeout_s=5,
    )

    def train_until(condition: Callable[[], bool], *, timeout_s: float = 90.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, "it did not happen in time"
            step(model, optimizer, nowcast.step)

    def accepted() -> int:
        return nowcast.summary()["nowcasts"]["accepted"]

    with nowcast:
        train_until(lambda: accepted() == 1)
        if moment == "between":
            train_until(lambda: nowcast.step % INTERVAL == 1)
            process.kill()
        else:  # it stops half way through what it is doing, and dies there
            train_until(lambda: nowcast.step % PERIOD == (1 if moment == "upload" else PERIOD - 1))
            process.signal(signal.SIGSTOP)
            threading.Timer(0.3, process.kill).start()
        train_until(lambda: nowcast.summary()["nowcasts"]["skipped"] >= 1)
        lost = nowcast.summary()
        assert set(lost["reasons"]) <= {"server_unavailable", "timeout"}
        assert all(parameter.isfinite().all() for parameter in model.parameters())
        process.start()
        before = accepted()
        train_until(lambda: accepted() > before)
    summary = nowcast.summary()
    assert summary["server"]["lost"] >= 1
    assert summary["server"]["back"] == summary["server"]["lost"]
    assert summary["nowcasts"]["skipped"] == sum(summary["reasons"].values())
    assert [event.outcome for event in nowcast.events if event.kind == "server"][:2] == ["lost", "back"]
    process.kill()
