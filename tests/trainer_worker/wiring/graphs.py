"""Graphs edge by edge, and the one-to-one map of neurons between two of them (../shared/parity/README.md)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from protos.wiring import Block, EdgeType, Parameter, Wiring
from trainer_worker.metatrain.reference import to_graph


@dataclass(frozen=True)
class Graph:
    """A graph as the parity fixtures write it; self loops (type 13) included."""

    edge_index: np.ndarray  # (2, edges)
    edge_type: np.ndarray  # (edges,)
    param_edge: np.ndarray  # (n,), -1 where a weight is in no edge
    param_slot: np.ndarray  # (n,), likewise
    neurons: int


NAMES = ("edge_index", "edge_type", "param_edge", "param_slot")


def expand(wiring: Wiring) -> Graph:
    """Every edge of a wiring."""
    graph = to_graph(wiring)
    assert sum(block.size for block in wiring.blocks) == int((graph.param_edge >= 0).sum()), "a weight sits in two edges"
    return Graph(*(graph[name].numpy() for name in NAMES), neurons=wiring.neurons)


def published(arrays: dict[str, np.ndarray]) -> Graph:
    """The graph of a parity fixture."""
    return Graph(*(arrays[name].astype(np.int64) for name in NAMES), neurons=len(arrays["node_pe"]))


def match(ours: Graph, theirs: Graph) -> np.ndarray:
    """The map of our neurons to theirs that sends each edge to its edge; asserts that the graphs, which have no heads, are one."""
    assert ours.neurons == theirs.neurons
    assert np.array_equal(np.bincount(ours.edge_type, minlength=14), np.bincount(theirs.edge_type, minlength=14))
    assert (ours.param_edge >= 0).all()
    assert np.array_equal(ours.param_slot, theirs.param_slot)
    assert np.array_equal(ours.edge_type[ours.param_edge], theirs.edge_type[theirs.param_edge])
    mapping = np.full(ours.neurons, -1)
    for end in (0, 1):
        mapping[ours.edge_index[end, ours.param_edge]] = theirs.edge_index[end, theirs.param_edge]
    for end in (0, 1):
        assert np.array_equal(mapping[ours.edge_index[end, ours.param_edge]], theirs.edge_index[end, theirs.param_edge])
    assert np.array_equal(np.sort(mapping), np.arange(theirs.neurons)), "not one to one"
    assert np.array_equal(_structure(ours, mapping), _structure(theirs, np.arange(theirs.neurons)))
    return mapping


def _structure(graph: Graph, names: np.ndarray) -> np.ndarray:
    kept = graph.edge_type >= 10
    rows = np.stack([names[graph.edge_index[0, kept]], names[graph.edge_index[1, kept]], graph.edge_type[kept]])
    return rows[:, np.lexsort(rows)]


def published_wiring(params: Sequence[tuple[str, tuple[int, ...]]], graph: Graph) -> Wiring:
    """The published graph as a wiring, in its own numbering: rows of edges become blocks. `params` as in the flat vector."""
    parameters = tuple(Parameter(name, shape) for name, shape in params)
    blocks: list[Block] = []
    start = 0
    for number, parameter in enumerate(parameters):
        edges, slots = (array[start : start + parameter.size] for array in (graph.param_edge, graph.param_slot))
        first = np.flatnonzero(slots == 0)  # the weights of an edge lie side by side
        count = np.bincount(edges)[edges[first]]
        ends = np.stack([*graph.edge_index[:, edges[first]], graph.edge_type[edges[first]], first, count]).T.tolist()
        rows = [
            Block(kind, source, 1, target, 1, parameter=number, offset=at, slots=many, slot_stride=int(many > 1))
            for source, target, kind, at, many in ends
        ]
        for side in ("source", "target", "source"):
            rows = _stacked(rows, side)
        blocks += rows
        start += parameter.size
    structure = (graph.edge_type >= 10) & (graph.edge_type != EdgeType.SELF_LOOP)
    ends = np.stack([*graph.edge_index[:, structure], graph.edge_type[structure]]).T.tolist()
    blocks += [Block(kind, source, 1, target, 1) for source, target, kind in ends]
    return Wiring(parameters, graph.neurons, tuple(blocks))


def _stacked(blocks: list[Block], side: str) -> list[Block]:
    """Put blocks together whose sources (or targets) follow one upon the other, at one distance in the tensor."""
    kept: list[Block] = []
    for block in blocks:
        if kept:
            last = kept[-1]
            start, count, stride = (getattr(last, name) for name in (side, f"{side}s", f"{side}_stride"))
            step = stride if count > 1 else block.offset - last.offset
            one = {side: start + count, f"{side}s": 1, f"{side}_stride": 0, "offset": last.offset + count * step}
            if step > 0 and replace(last, **one) == block:
                kept[-1] = replace(last, **{f"{side}s": count + 1, f"{side}_stride": step})
                continue
        kept.append(block)
    return kept
