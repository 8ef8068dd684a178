"""The plan alone: its size, and short plans for long wirings. That every edge is in one unit, `test_exact.py` would notice."""

import pytest
import torch
from wirings import drawn_wiring, transformer_wiring

from nowcast_server.nino.engine.plan import plan, plan_bytes
from nowcast_server.nino.engine.workers import Sizes
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
