"""Graphs edge by edge, and the one-to-one map of neurons between two of them (../shared/parity/README.md)."""

import hashlib
from dataclasses import dataclass

import numpy as np

from protos.wiring import STRUCTURE, Wiring


@dataclass(frozen=True)
class Graph:
    """A graph as the parity fixtures write it; self loops (type 13) included."""

    edge_index: np.ndarray  # (2, edges)
    edge_type: np.ndarray  # (edges,)
    param_edge: np.ndarray  # (n,), -1 where a weight is in no edge
    param_slot: np.ndarray  # (n,)
    neurons: int


def expand(wiring: Wiring) -> Graph:
    """Every edge of a wiring."""
    index, types = [], []
    param_edge = np.full(wiring.size, -1, dtype=np.int64)
    param_slot = np.zeros(wiring.size, dtype=np.int64)
    edges = 0
    for block in wiring.blocks:
        if block.diagonal:
            i = j = np.arange(block.sources)
        else:
            i, j = (axis.ravel() for axis in np.meshgrid(np.arange(block.sources), np.arange(block.targets), indexing="ij"))
        index.append(np.stack([block.source + i, block.target + j]))
        types.append(np.full(len(i), block.edge_type))
        if block.parameter != STRUCTURE:
            for slot in range(block.slots):
                at = (
                    block.offset
                    + i * block.source_stride
                    + j * block.target_stride * (not block.diagonal)
                    + slot * block.slot_stride
                )
                at = at + wiring.offsets[block.parameter]
                assert (param_edge[at] == -1).all(), "a weight sits in two edges"
                param_edge[at], param_slot[at] = edges + np.arange(len(i)), slot
        edges += len(i)
    loops = np.arange(wiring.neurons)
    index.append(np.stack([loops, loops]))
    types.append(np.full(wiring.neurons, 13))
    return Graph(np.concatenate(index, 1), np.concatenate(types), param_edge, param_slot, wiring.neurons)


def published(arrays: dict[str, np.ndarray]) -> Graph:
    """The graph of a parity fixture."""
    names = ("edge_index", "edge_type", "param_edge", "param_slot")
    return Graph(*(arrays[name].astype(np.int64) for name in names), neurons=len(arrays["node_pe"]))


def match(ours: Graph, theirs: Graph) -> np.ndarray:
    """The map of our neurons to theirs that sends every weight's edge to its edge; asserts that the graphs are one.

    Neurons that touch no weight (attention heads) are told apart by the structural edges alone.
    """
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
    _match_heads(ours, theirs, mapping)
    assert np.array_equal(np.sort(mapping), np.arange(theirs.neurons)), "not one to one"
    assert np.array_equal(_structure(ours, mapping), _structure(theirs, np.arange(theirs.neurons)))
    return mapping


def _match_heads(ours: Graph, theirs: Graph, mapping: np.ndarray) -> None:
    """Map neurons without weights by the neurons they point to."""
    members = {}
    for node, group in _groups(theirs, np.arange(theirs.neurons)).items():
        members.setdefault(group, []).append(node)
    for node, group in _groups(ours, mapping).items():
        if mapping[node] < 0:
            mapping[node] = members[group].pop()


def _groups(graph: Graph, names: np.ndarray) -> dict[int, tuple[int, ...]]:
    heads = graph.edge_index[:, graph.edge_type == 11]
    return {int(node): tuple(sorted(names[heads[1, heads[0] == node]].tolist())) for node in np.unique(heads[0])}


def _structure(graph: Graph, names: np.ndarray) -> np.ndarray:
    kept = graph.edge_type >= 10
    rows = np.stack([names[graph.edge_index[0, kept]], names[graph.edge_index[1, kept]], graph.edge_type[kept]])
    return rows[:, np.lexsort(rows)]


def digest(graph: Graph) -> str:
    """A hash of the graph that does not depend on how its neurons are numbered.

    Neurons are renamed in the order in which the flat vector's weights meet them, those without (heads) by what they point to.
    """
    names = np.full(graph.neurons, -1)
    ends = graph.edge_index[:, graph.param_edge].T.ravel()
    _, first = np.unique(ends, return_index=True)
    met = ends[np.sort(first)]
    names[met] = np.arange(len(met))
    groups = sorted((group, node) for node, group in _groups(graph, names).items() if names[node] < 0)
    names[[node for _, node in groups]] = len(met) + np.arange(len(groups))
    weights = np.stack([*names[graph.edge_index[:, graph.param_edge]], graph.edge_type[graph.param_edge], graph.param_slot])
    parts = (weights, _structure(graph, names))
    return hashlib.sha256(b"".join(np.ascontiguousarray(part, dtype="<i8").tobytes() for part in parts)).hexdigest()
