"""The plan: its size, and short ones for long wirings (that every edge is in one unit, `test_exact.py` would notice); memory."""

import pytest
import torch
from networks import random_checkpoint
from wirings import drawn_wiring, transformer_wiring

from nowcast_server.nino.engine import StreamingEngine
from nowcast_server.nino.engine.plan import plan, plan_bytes
from nowcast_server.nino.engine.workers import Sizes
from nowcast_server.selftest.networks import transformer
from protos.wiring import Block, EdgeType, Parameter, Wiring

CPU = torch.device("cpu")
SMALL = Sizes(panel=64, tile=20, sources=8, bundle=16, small=10)
WIRINGS = [transformer_wiring(width=12, vocabulary=30), *(drawn_wiring(seed) for seed in range(4))]


@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize("wiring", WIRINGS)
def test_what_a_plan_takes_is_known_before_it_is_made(wiring: Wiring, *, graph: bool) -> None:
    """A small registration could ask for a plan of gigabytes, and the server would learn of it by running out of memory."""
    for sizes in (SMALL, Sizes()):
        assert plan(wiring, sizes, graph=graph, device=CPU).nbytes <= plan_bytes(wiring, sizes, graph=graph)
    few = tuple(Block(EdgeType.HEAD, 0, 32, 32, 32) for _ in range(1000)) if graph else ()
    hostile = Wiring((Parameter("w", (9,)),), 64, few)
    assert plan_bytes(hostile, Sizes(), graph=graph) >= 70 * 1024 * len(few)  # as measured while such a plan was made


def _chain(*, width: int, heads: int) -> Wiring:
    head = Block(EdgeType.HEAD, 0, 8, width, 1)
    dense = Block(EdgeType.LINEAR, 0, width, width, width, False, 0, 0, 1, width)
    return Wiring((Parameter("w", (width, width)),), 2 * width, (dense, *([head] * heads)))


def test_small_blocks_make_few_units() -> None:
    """A transformer's hundreds of heads would each cost a round of tiny operations, or a small network several."""
    many, few, one = (plan(_chain(width=w, heads=n), Sizes(), graph=True, device=CPU) for w, n in ((64, 400), (64, 20), (24, 20)))
    assert len(many.units) < 10
    assert [few.single, one.single, len(one.units)] == [False, True, 1]


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
