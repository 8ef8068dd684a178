"""The engine on a CUDA device. No machine of this project has had one: these tests say what must hold there."""

import pytest
import torch
from networks import random_checkpoint, random_states
from wirings import drawn_wiring, node_pe, relative_error, transformer_wiring

from nowcast_server.nino.engine import StreamingEngine
from protos.wiring import Wiring

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def _exact() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False


@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize("wiring", [transformer_wiring(width=300, vocabulary=4000), drawn_wiring(5)], ids=["large", "mixed"])
@pytest.mark.parametrize("on_device", [False, True], ids=["host", "device"])
def test_cuda_equals_the_cpu(wiring: Wiring, *, graph: bool, on_device: bool) -> None:
    """A forecast would depend on where it is made, or on where its snapshots lie."""
    checkpoint, states, features = random_checkpoint(graph=graph, hidden=64), random_states(wiring), node_pe(wiring)
    expected = StreamingEngine(checkpoint).forecast(wiring, states, horizons=(1, 40), node_pe=features)
    placed = states.cuda() if on_device else states
    made = StreamingEngine(checkpoint, device="cuda").forecast(wiring, placed, horizons=(1, 40), node_pe=features)
    assert made.device.type == "cuda"
    assert relative_error(made.cpu(), expected, states[-1]) <= TOLERANCE


def test_memory_on_the_device_is_as_promised() -> None:
    """A server would admit a forecast the device has no memory for; the reference takes thirty times as much."""
    wiring = transformer_wiring(width=1024, layers=4, vocabulary=20_000)
    engine = StreamingEngine(random_checkpoint(hidden=128), device="cuda")
    states, features = random_states(wiring).cuda(), node_pe(wiring)
    engine.forecast(wiring, states, horizons=(1,), node_pe=features)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    engine.forecast(wiring, states, horizons=(1,), node_pe=features)
    assert torch.cuda.max_memory_allocated() - before <= engine.memory_bytes(wiring, horizons=1)


@pytest.mark.parametrize("graph", [True, False])
def test_cuda_gives_the_same_each_time(*, graph: bool) -> None:
    """A run could not be reproduced: sums that depend on which thread comes first differ in their last digits."""
    wiring, engine = drawn_wiring(5), StreamingEngine(random_checkpoint(graph=graph, hidden=64), device="cuda")
    states, features = random_states(wiring), node_pe(wiring)
    made = [engine.forecast(wiring, states, horizons=(1, 40), node_pe=features) for _ in range(5)]
    assert all(torch.equal(made[0], other) for other in made[1:])


def test_a_forecast_leaves_the_default_stream_alone() -> None:
    """Embedded beside a training, each forecast would hold up the steps that come after it."""
    wiring, engine = transformer_wiring(), StreamingEngine(random_checkpoint(), device="cuda")
    states, features = random_states(wiring), node_pe(wiring)
    engine.forecast(wiring, states, horizons=(1,), node_pe=features)
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(2_000_000_000)  # the training has a second's work queued
    begun.record()
    engine.forecast(wiring, states, horizons=(1,), node_pe=features)
    assert not begun.query()  # the forecast is there, and the training still at what it had before
    ended.record()
    ended.synchronize()
