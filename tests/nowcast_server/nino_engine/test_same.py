"""The same forecast, bit for bit: for any number of threads, alone or beside others."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from networks import random_checkpoint, random_states
from torch import Tensor
from torch import multiprocessing as mp
from wirings import drawn_wiring, node_pe, transformer_wiring

from nowcast_server.interruption import Cancelled, interruptible
from nowcast_server.nino.engine import StreamingEngine
from nowcast_server.nino.engine import workers as engine_workers
from nowcast_server.nino.engine.kernels import Kernels, Sums
from nowcast_server.nino.engine.plan import Unit, plan
from nowcast_server.nino.engine.workers import Sizes
from protos.wiring import Wiring


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    """Puts torch's number of threads and default dtype back."""
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)


def forecast(wiring: Wiring, engine: StreamingEngine, *, seed: int = 0) -> Tensor:
    return engine.forecast(wiring, random_states(wiring, seed=seed), horizons=(1, 8, 40), node_pe=node_pe(wiring))


@pytest.mark.parametrize("graph", [True, False])
def test_any_number_of_threads(monkeypatch: pytest.MonkeyPatch, *, graph: bool) -> None:
    """A run could not be reproduced on a machine with other cores; or only one core would work."""
    wiring, engine = transformer_wiring(width=64, vocabulary=500), StreamingEngine(random_checkpoint(graph=graph, hidden=32))
    forecasts, spied = [], Mock(wraps=engine_workers.in_order)
    for name in ("snapshots", "workers"):
        monkeypatch.setattr(f"nowcast_server.nino.engine.{name}.in_order", spied)
    for count in (1, 2, 3, 2):
        torch.set_num_threads(count)
        spied.reset_mock()
        forecasts.append(forecast(wiring, engine))
        assert {call.kwargs["threads"] for call in spied.call_args_list} == {count}
    assert all(torch.equal(forecasts[0], other) for other in forecasts[1:])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("graph", [True, False])
def test_any_default_dtype(dtype: torch.dtype, *, graph: bool) -> None:
    """An embedded engine runs in whatever the training has set; it would fail, or count a neuron's 300 edges as 256."""
    checkpoint = random_checkpoint(graph=graph, hidden=32)
    wirings = [transformer_wiring(width=64, vocabulary=300), drawn_wiring(1)]
    given = [(wiring, random_states(wiring, seed=0), node_pe(wiring)) for wiring in wirings]

    def forecasts() -> list[Tensor]:
        engine = StreamingEngine(checkpoint)
        return [engine.forecast(wiring, states, horizons=(1, 40), node_pe=features) for wiring, states, features in given]

    expected = forecasts()
    torch.set_default_dtype(dtype)
    assert all(torch.equal(one, other) for one, other in zip(forecasts(), expected, strict=True))


def test_torchs_own_threads_are_left_alone() -> None:
    """Training in the same process would slow down to one thread after the first embedded forecast."""
    torch.set_num_threads(2)
    engine_workers._POOLS.clear()
    forecast(transformer_wiring(), StreamingEngine(random_checkpoint()))
    assert torch.get_num_threads() == 2
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 2


@pytest.mark.parametrize("count", [1, 2])
def test_a_forecast_that_nobody_wants_stops(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """A device would finish a forecast of minutes for a client that has hung up."""
    torch.set_num_threads(count)
    given_up, begun = threading.Event(), list[object]()
    real = Kernels.messages

    def give_up_at_the_third(self: Kernels, unit: Unit, *others: Any) -> Sums:
        begun.append(unit)
        if len(begun) == 3:
            given_up.set()
        return real(self, unit, *others)

    monkeypatch.setattr(Kernels, "messages", give_up_at_the_third)
    wiring, engine = transformer_wiring(width=160, vocabulary=500), StreamingEngine(random_checkpoint(hidden=32))

    def check() -> None:
        if given_up.is_set():
            raise Cancelled

    with interruptible(check), pytest.raises(Cancelled):
        forecast(wiring, engine)
    units = plan(wiring, Sizes(), graph=True, device=torch.device("cpu")).units  # that one convolution walks
    assert 3 <= len(begun) <= 3 + count * (engine_workers.AHEAD + 1) < len(units)


def test_an_error_reaches_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failing unit would hang the device thread, or leave a forecast half done without a word."""
    engine = StreamingEngine(random_checkpoint(hidden=32))
    monkeypatch.setattr(engine._kernels, "forecasts", Mock(side_effect=MemoryError("no room")))
    with pytest.raises(MemoryError, match="no room"):
        forecast(transformer_wiring(), engine)
    monkeypatch.undo()
    assert forecast(transformer_wiring(), engine).isfinite().all()


def _forked(wiring: Wiring, engine: StreamingEngine, path: Path) -> None:
    torch.set_num_threads(1)  # as torch asks of forked processes: its own threads do not survive either
    torch.save(forecast(wiring, engine), path)


def test_a_forked_process_can_forecast(tmp_path: Path) -> None:
    """A trainer whose launcher forks would hang in the child at its first forecast."""
    wiring, engine = transformer_wiring(), StreamingEngine(random_checkpoint())
    expected = forecast(wiring, engine)
    child = mp.get_context("fork").Process(target=_forked, args=(wiring, engine, tmp_path / "made.pt"))
    child.start()
    child.join(120)
    alive = child.is_alive()
    child.kill()
    assert not alive
    assert torch.equal(torch.load(tmp_path / "made.pt"), expected)
