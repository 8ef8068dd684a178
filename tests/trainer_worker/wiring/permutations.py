"""Permuting a network's neurons through its wiring, for tests of equivariance.

    order = permutation(wiring, {3: 4, 4: 3})       # closed over everything tied to these neurons
    place = weight_order(wiring, order)             # asserts that the graph is mapped onto itself
    load(model, flat(model)[place])                 # the permuted network

Neuron i of the permuted network is neuron `order[i]` of the old one, and weight p of the permuted flat vector is weight `place[p]`.
So a forecast f is equivariant if f(states[:, place], node_pe[order]) == f(states, node_pe)[:, place].
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from graphs import expand
from small_runs import flat
from torch import Tensor, nn
from torch.nn.utils import vector_to_parameters

from protos.wiring import STRUCTURE, EdgeType, Wiring

Order = np.ndarray
Moves = Mapping[int, int]
Head = list[np.ndarray]
"""Its node, and the ranges of neurons that belong to it, those of the query first."""


def targets(wiring: Wiring, name: str) -> np.ndarray:
    """The neurons a parameter's weights end in (for a key, whose edges run backwards, those they start from)."""
    blocks = [block for block in wiring.blocks if block.parameter >= 0 and wiring.parameters[block.parameter].name == name]
    return np.unique(np.concatenate([np.arange(block.target, block.target + block.targets) for block in blocks]))


def rolled(neurons: np.ndarray) -> Moves:
    """Each takes the place of the one before."""
    return dict(zip(neurons.tolist(), np.roll(neurons, 1).tolist(), strict=True))


def swapped(first: Head, second: Head) -> Moves:
    """Two heads change places."""
    ours, theirs = (np.concatenate(head).tolist() for head in (first, second))
    return dict(zip(ours + theirs, theirs + ours, strict=True))


def permutation(wiring: Wiring, moves: Moves) -> Order:
    """The order of all neurons in which some are moved, and what is tied to them alike; ValueError where ties contradict."""
    order = dict(moves)
    ties = [(block.source, block.target, block.sources) for block in wiring.blocks if block.diagonal]
    ties += [(target, source, count) for source, target, count in ties]
    members = {int(head[0][0]): set(np.concatenate(head[1:]).tolist()) for head in _heads(wiring)}
    before = -1
    while len(order) > before:
        before = len(order)
        found = [
            (neuron + end - start, image + end - start)
            for start, end, count in ties
            for neuron, image in order.items()
            if start <= min(neuron, image) and max(neuron, image) < start + count
        ]
        for node, group in members.items():  # a head's node follows its members
            images = {order[neuron] for neuron in group if neuron in order}
            found += [(node, other) for other, neurons in members.items() if images and images <= neurons]
        for neuron, image in found:
            if order.setdefault(neuron, image) != image:
                raise ValueError(f"neuron {neuron} is tied two ways")
    whole = np.array([order.get(neuron, neuron) for neuron in range(wiring.neurons)])
    if len(np.unique(whole)) < wiring.neurons:
        raise ValueError("not one to one")
    return whole


def weight_order(wiring: Wiring, order: Order) -> Tensor:
    """Where each weight of the permuted flat vector comes from; asserts that the permuted graph is the graph itself. (n,) int64."""
    graph = expand(wiring)
    moved = order[graph.edge_index]
    structure = graph.edge_type >= 10
    rows = [np.stack([*ends[:, structure], graph.edge_type[structure]]) for ends in (graph.edge_index, moved)]
    before, after = (row[:, np.lexsort(row)] for row in rows)
    if not np.array_equal(before, after):
        raise ValueError("the structural edges change")
    placed = np.flatnonzero(graph.param_edge >= 0)
    edges = graph.param_edge[placed]
    tensor = np.repeat(np.arange(len(wiring.parameters)), [parameter.size for parameter in wiring.parameters])[placed]
    kinds = [tensor, graph.edge_type[edges], graph.param_slot[placed]]
    keys = [np.stack([*kinds, *ends[:, edges]]) for ends in (graph.edge_index, moved)]
    here, there = (np.lexsort(key[::-1]) for key in keys)
    if not np.array_equal(keys[0][:, here], keys[1][:, there]):
        raise ValueError("the edges change")
    place = np.arange(wiring.size)
    place[placed[there]] = placed[here]
    return torch.from_numpy(place)


def load(model: nn.Module, vector: Tensor) -> None:
    """Load a flat parameter vector."""
    with torch.no_grad():
        vector_to_parameters(vector, model.parameters())


@torch.no_grad()
def check_symmetry(model: nn.Module, wiring: Wiring, moves: Moves, output: Callable[[], Tensor]) -> None:
    """The moves map the graph onto itself, move weights, and keep what the network, in double precision, computes."""
    before, weights = output(), flat(model)
    moved = weights[weight_order(wiring, permutation(wiring, moves))]
    assert not torch.equal(moved, weights)
    load(model, moved)
    torch.testing.assert_close(output(), before, rtol=1e-9, atol=1e-9)
    load(model, weights)


def hidden_groups(wiring: Wiring) -> list[str]:
    """Matrices whose targets are hidden: weights end in them and others start from them; one name for each set of targets."""
    blocks = [block for block in wiring.blocks if block.parameter != STRUCTURE]
    starts = {neuron for block in blocks if block.sources > 1 for neuron in range(block.source, block.source + block.sources)}
    names: dict[tuple[int, ...], str] = {}
    for parameter in (wiring.parameters[block.parameter] for block in blocks):
        neurons = targets(wiring, parameter.name).tolist()
        if len(parameter.shape) > 1 and len(neurons) > 1 and set(neurons) <= starts:
            names.setdefault(tuple(neurons), parameter.name)
    return list(names.values())


def _heads(wiring: Wiring) -> list[Head]:
    found: dict[int, Head] = {}
    for block in wiring.blocks:
        if block.edge_type == EdgeType.HEAD:
            found.setdefault(block.source, [np.array([block.source])]).append(np.arange(block.target, block.target + block.targets))
    return list(found.values())


def attention_layers(wiring: Wiring) -> list[list[Head]]:
    """The heads of every attention layer, told by the ranges its query weights end in."""
    heads = sorted(_heads(wiring), key=lambda head: int(head[1][0]))
    queries = [range(block.target, block.target + block.targets) for block in wiring.blocks if block.edge_type == EdgeType.QUERY]
    return [[head for head in heads if int(head[1][0]) in neurons] for neurons in queries]
