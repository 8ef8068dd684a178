"""Links and servers that need longer than an interval: forecasts come less often, and training does not notice."""

import logging
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
import torch
from cut_network import CutNetwork
from faulty_server import FaultyServer
from small_runs import STEADY
from torch import nn

from trainer_worker import Nowcast, Server, boundary
from trainer_worker.endpoints import sender

INTERVAL = 5
INTERVAL_S = 0.1
SLOW_BYTES_PER_S = 100_000
"""What `CutNetwork.slow` lets pass, about, or less."""
WEIGHTS = 4096
"""A snapshot takes more than an interval, and so does a forecast; not so much that no interval would do."""


@contextmanager
def slow_link(server: FaultyServer) -> Iterator[CutNetwork]:
    with closing(CutNetwork(server.port)) as network:
        network.slow(3600)
        yield network


def large() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Linear(64, WEIGHTS // 64, bias=False)
    return model, torch.optim.SGD(model.parameters(), lr=1e-3)


def intervals(nowcast: Nowcast, model: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
    """Train for so many intervals, as they were at first."""
    for _ in range(count * INTERVAL):
        time.sleep(INTERVAL_S / INTERVAL)
        optimizer.zero_grad()
        model(torch.ones(1, 64)).sum().backward()
        optimizer.step()


def test_forecasts_come_less_often_over_a_slow_link_and_as_before_once_it_is_fast(
    faulty: FaultyServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link that needs longer than an interval would never deliver a whole context; the run would have gained nothing."""
    caplog.set_level(logging.INFO, "trainer_worker")
    monkeypatch.setattr(boundary, "IN_TIME", 1)
    model, optimizer = large()
    with slow_link(faulty) as network:
        nowcast = Nowcast(model, optimizer, interval=INTERVAL, server=Server(network.url), push=STEADY).start()
        while nowcast.summary()["nowcasts"]["used"] < 2:
            intervals(nowcast, model, optimizer, 5)
            assert nowcast.steps < 500 * INTERVAL, nowcast.summary()
        grown = nowcast.summary()["interval"]
        network.slow(0)
        while nowcast.summary()["interval"] == grown:
            intervals(nowcast, model, optimizer, 5)
            assert nowcast.steps < 1000 * INTERVAL, nowcast.summary()
        nowcast.stop()
    summary = nowcast.summary()
    assert INTERVAL < grown <= boundary.WIDEST * INTERVAL
    assert summary["interval"] < grown
    assert set(summary["reasons"]) <= {"late", "history_missing"}
    assert summary["waited_s"] < 0.5
    assert summary["server"] == {"lost": 0, "back": 0}
    assert "forecasts keep coming late: a snapshot every" in caplog.text


def test_an_upload_may_take_longer_than_any_other_call(faulty: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large snapshot that is cut off at the timeout, and begun anew, never arrives."""
    monkeypatch.setattr(sender, "SLOWEST_RATE", SLOW_BYTES_PER_S / 20)
    model = nn.Linear(256, 256)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with slow_link(faulty) as network:
        reached = Server(network.url, timeout_s=0.5)
        with Nowcast(model, optimizer, interval=1, server=reached) as nowcast:
            optimizer.step()
            begun = time.monotonic()
            while nowcast.in_flight:
                time.sleep(0.01)
                assert time.monotonic() - begun < 60
    assert time.monotonic() - begun > 0.5
    assert nowcast.summary()["server"]["lost"] == 0
    assert faulty.calls.count("send") == 1
