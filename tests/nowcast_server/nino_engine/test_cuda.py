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
    placed = states.cuda() if on_device else states.pin_memory()
    made = StreamingEngine(checkpoint, device="cuda").forecast(wiring, placed, horizons=(1, 40), node_pe=features)
    assert made.device == placed.device
    assert relative_error(made.cpu(), expected, states[-1]) <= TOLERANCE


def test_memory_on_the_device_follows_neurons() -> None:
    """A network larger than the device could not be forecast."""
    wiring = transformer_wiring(width=1024, layers=4, vocabulary=20_000)
    engine = StreamingEngine(random_checkpoint(hidden=128), device="cuda")
    torch.cuda.reset_peak_memory_stats()
    engine.forecast(wiring, random_states(wiring), horizons=(1,), node_pe=node_pe(wiring))
    assert torch.cuda.max_memory_allocated() < 0.2 * 128 * 4 * wiring.edges
