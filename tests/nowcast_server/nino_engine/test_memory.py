"""Memory: O(neurons); what is promised for a network of 10^9 weights."""

import pytest
import torch
from networks import random_checkpoint

from nowcast_server.nino.engine import StreamingEngine
from nowcast_server.selftest.networks import transformer


def test_memory_follows_neurons_not_edges() -> None:
    """Something of hidden size would be kept over edges. That no more is taken than said, `test_contract.py` measures."""
    engine, wiring = StreamingEngine(random_checkpoint(hidden=128)), transformer(160, layers=2, vocabulary=2000)
    estimate = engine.memory_bytes(wiring, horizons=4)
    assert estimate < 128 * 4 * wiring.edges / 4  # a quarter of one vector an edge; the reference holds six
    assert estimate < 40 * 128 * 4 * wiring.neurons + 60e6
    billion = transformer(2048, layers=18, vocabulary=32_000)
    assert billion.edges > 1_000_000_000
    assert engine.memory_bytes(billion, horizons=0) <= 2_000_000_000


def test_threads_that_have_nothing_to_do_are_not_paid_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server of 64 threads would ask 3 GB for a network of some thousand weights, and refuse it."""
    engine, small = StreamingEngine(random_checkpoint(hidden=128)), transformer(16, layers=1, vocabulary=30)
    alone = engine.memory_bytes(small)
    large = transformer(160, layers=2, vocabulary=2000)
    one_thread = engine.memory_bytes(large)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    assert engine.memory_bytes(small) == alone
    assert engine.memory_bytes(large) > one_thread + 63 * engine.sizes.unit_bytes
