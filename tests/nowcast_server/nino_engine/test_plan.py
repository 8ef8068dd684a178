"""The plan alone: every edge in exactly one unit, units in order, short plans for long wirings."""

from collections import Counter

import pytest
import torch
from wirings import drawn_wiring, transformer_wiring

from nowcast_server.nino.engine.bundles import Bundle
from nowcast_server.nino.engine.plan import Unit, plan, plan_bytes
from nowcast_server.nino.engine.snapshots import panel_view
from nowcast_server.nino.engine.workers import Sizes
from protos.wiring import Block, EdgeType, Parameter, Wiring
from trainer_worker.metatrain.reference import to_graph

CPU = torch.device("cpu")
SMALL = Sizes(panel=64, tile=20, sources=8, bundle=16, small=10)
WIRINGS = [transformer_wiring(width=12, vocabulary=30), *(drawn_wiring(seed) for seed in range(4))]


def listed(unit: Unit, size: int) -> list[tuple[int, ...]]:
    """A unit's edges as (source, target, type, positions of their weights…)."""
    if isinstance(unit, Bundle):
        position = unit.position if unit.carries else torch.empty(unit.edges, 0).long()
        return [
            (int(s), int(t), int(k), *(place for place in p.tolist() if place < size))
            for s, t, k, p in zip(unit.source, unit.target, unit.edge_type.expand(unit.edges), position, strict=True)
        ]
    positions = panel_view(torch.arange(size), unit).movedim(0, -1) if unit.carries else torch.empty(unit.outer, unit.inner, 0)
    return [
        (unit.sources.start + j, unit.targets.start + i, unit.edge_type, *positions[i, j].long().tolist())
        for i in range(unit.outer)
        for j in range(unit.inner)
    ]


def expected(wiring: Wiring) -> Counter[tuple[int, ...]]:
    graph = to_graph(wiring)
    weights: list[list[tuple[int, int]]] = [[] for _ in range(graph.num_edges)]
    for position, (edge, slot) in enumerate(zip(graph.param_edge.tolist(), graph.param_slot.tolist(), strict=True)):
        if edge >= 0:
            weights[edge].append((slot, position))
    rows = zip(*graph.edge_index.tolist(), graph.edge_type.tolist(), weights, strict=True)
    return Counter((s, t, k, *(position for _, position in sorted(held))) for s, t, k, held in rows)


@pytest.mark.parametrize("sizes", [SMALL, Sizes()], ids=["small", "default"])
@pytest.mark.parametrize("wiring", WIRINGS)
def test_every_edge_is_in_one_unit(wiring: Wiring, sizes: Sizes) -> None:
    """An edge would be left out, counted twice, or joined to another's weights."""
    work = plan(wiring, sizes, graph=True, device=CPU)
    assert sum((Counter(listed(unit, wiring.size)) for unit in work.units), Counter()) == expected(wiring)
    assert work.edges == wiring.edges


@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize("wiring", WIRINGS)
def test_what_a_plan_takes_is_known_before_it_is_made(wiring: Wiring, *, graph: bool) -> None:
    """A small registration could ask for a plan of gigabytes, and the server would learn of it by running out of memory."""
    for sizes in (SMALL, Sizes()):
        assert plan(wiring, sizes, graph=graph, device=CPU).nbytes <= plan_bytes(wiring, sizes, graph=graph)
    few = tuple(Block(EdgeType.HEAD, 0, 32, 32, 32) for _ in range(1000)) if graph else ()
    hostile = Wiring((Parameter("w", (9,)),), 64, few)
    assert plan_bytes(hostile, Sizes(), graph=graph) >= 70 * 1024 * len(few)  # as measured while such a plan was made


@pytest.mark.parametrize("wiring", WIRINGS)
def test_every_weight_is_in_one_unit_of_wnn(wiring: Wiring) -> None:
    """WNN would forecast a weight twice, or not at all."""
    work = plan(wiring, SMALL, graph=False, device=CPU)
    held = [p for unit in work.units for _, _, _, *ps in listed(unit, wiring.size) for p in ps]
    for left in work.uncovered:
        held += torch.arange(wiring.size)[left].tolist()
    assert sorted(held) == list(range(wiring.size))


def test_degrees_count_every_edge() -> None:
    """A neuron's mean would be taken over the wrong number of messages."""
    for wiring in WIRINGS:
        graph = to_graph(wiring)
        counts = torch.zeros(wiring.neurons, 15).index_put_(
            (graph.edge_index[1], graph.edge_type), torch.ones(graph.num_edges), accumulate=True
        )
        work = plan(wiring, Sizes(), graph=True, device=CPU)
        assert torch.equal(work.degree[:, 0], counts.sum(dim=1))
        assert torch.allclose(work.types * work.degree, counts)


def _chain(*, width: int, heads: int) -> Wiring:
    head = Block(EdgeType.HEAD, 0, 8, width, 1)
    dense = Block(EdgeType.LINEAR, 0, width, width, width, False, 0, 0, 1, width)
    return Wiring((Parameter("w", (width, width)),), 2 * width, (dense, *([head] * heads)))


def test_many_small_blocks_make_few_units() -> None:
    """A transformer's hundreds of heads would each cost a round of tiny operations."""
    work = plan(_chain(width=64, heads=400), Sizes(), graph=True, device=CPU)
    assert len(work.units) < 10


def test_a_small_network_is_one_unit() -> None:
    """A forecast for it, which takes a few milliseconds, would spend most of them on three times as many operations."""
    work = plan(_chain(width=24, heads=20), Sizes(), graph=True, device=CPU)
    assert work.single
    assert len(work.units) == 1
    assert not plan(_chain(width=64, heads=20), Sizes(), graph=True, device=CPU).single
