"""Memory: O(neurons), measured in a process of its own; what is promised for a network of 10^9 weights."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from networks import random_checkpoint

from nowcast_server.nino.engine import StreamingEngine
from nowcast_server.selftest.networks import transformer

ROOT = Path(__file__).parents[3]

MEASURED = """
import sys, torch
sys.path[:0] = [{nino!r}]
from pathlib import Path
from networks import random_checkpoint
from nowcast_server.nino.engine import StreamingEngine
from nowcast_server.selftest.networks import transformer

def status(field):
    return next(int(l.split()[1]) * 1024 for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(field))

def measure(engine, wiring, states, features, horizons):
    small = transformer(40, layers=2, vocabulary=150)
    engine.forecast(small, torch.randn(5, small.size), horizons=(1,), node_pe=torch.zeros(small.neurons, 8))
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    engine.forecast(wiring, states, horizons=horizons, node_pe=features)
    print(status("VmHWM") - before, engine.memory_bytes(wiring, horizons=len(horizons)), wiring.edges, wiring.neurons)

wiring = transformer(160, layers=2, vocabulary=2000)
engine = StreamingEngine(random_checkpoint(hidden=128))
measure(engine, wiring, torch.randn(5, wiring.size), torch.zeros(wiring.neurons, 8), (1, 5, 20, 40))
"""


def test_memory_follows_neurons_not_edges() -> None:
    """Something of hidden size would be kept over edges, or a server would admit a forecast it has no room for."""
    code = MEASURED.format(nino=str(Path(__file__).parents[1] / "nino"))
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    peak, estimate, edges, neurons = (int(word) for word in done.stdout.split()[-4:])
    assert peak <= estimate
    assert estimate < 128 * 4 * edges / 4  # a quarter of one vector an edge; the reference holds six
    assert estimate < 40 * 128 * 4 * neurons + 60e6


def test_a_network_of_a_billion_weights_fits() -> None:
    """A network of 1B weights would need more than its snapshots and 2 GB."""
    wiring = transformer(2048, layers=18, vocabulary=32_000)
    assert wiring.edges > 1_000_000_000
    assert StreamingEngine(random_checkpoint(hidden=128)).memory_bytes(wiring, horizons=0) <= 2_000_000_000


def test_threads_that_have_nothing_to_do_are_not_paid_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server of 64 threads would ask 3 GB for a network of some thousand weights, and refuse it."""
    engine, small = StreamingEngine(random_checkpoint(hidden=128)), transformer(16, layers=1, vocabulary=30)
    alone = engine.memory_bytes(small)
    large = transformer(160, layers=2, vocabulary=2000)
    one_thread = engine.memory_bytes(large)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    assert engine.memory_bytes(small) == alone
    assert engine.memory_bytes(large) > one_thread + 63 * engine.sizes.unit_bytes
