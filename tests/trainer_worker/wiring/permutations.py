"""Permuting a network's neurons through its wiring, for tests of equivariance.

    order = permutation(wiring, {"layers.0.weight": shuffle})   # closed over everything tied to those neurons
    place = weight_order(wiring, order)                         # asserts that the graph is mapped onto itself
    load(model, flat(model)[place])                             # the permuted network

Neuron i of the permuted network is neuron `order[i]` of the old one, and weight p of the permuted flat vector is weight `place[p]`.
So a forecast f is equivariant if f(states[:, place], node_pe[order]) == f(states, node_pe)[:, place].
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from graphs import expand
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from protos.wiring import STRUCTURE, Block, Wiring

Order = np.ndarray


class NoSymmetryError(ValueError):
    """The neurons cannot be permuted so: something they are tied to would have to go two ways."""


def targets(wiring: Wiring, name: str) -> np.ndarray:
    """The neurons a parameter's weights end in (for a key, whose edges run backwards, those they start from)."""
    index = [parameter.name for parameter in wiring.parameters].index(name)
    blocks = [block for block in wiring.blocks if block.parameter == index]
    return np.unique(np.concatenate([np.arange(block.target, block.target + block.targets) for block in blocks]))


def permutation(wiring: Wiring, moves: Mapping[str, Sequence[int]]) -> Order:
    """The order of all neurons in which the targets of each named parameter are permuted, and what is tied to them alike.

    Raises:
        NoSymmetryError: ties contradict each other.
    """
    order = np.full(wiring.neurons, -1)
    for name, shuffle in moves.items():
        neurons = targets(wiring, name)
        _set(order, neurons, neurons[np.asarray(shuffle)])
    return close(wiring, order)


def close(wiring: Wiring, order: Order) -> Order:
    """Carry a partial order (-1: not yet decided) along diagonals and heads; neurons nothing moves stay."""
    order = order.copy()
    diagonals = [block for block in wiring.blocks if block.diagonal]
    while True:
        before = (order >= 0).sum()
        for block in diagonals:
            _along(order, block, forwards=True)
            _along(order, block, forwards=False)
        _heads(order, wiring)
        if (order >= 0).sum() == before:
            break
    order[order < 0] = np.flatnonzero(order < 0)
    if not np.array_equal(np.sort(order), np.arange(wiring.neurons)):
        raise NoSymmetryError("not one to one")
    return order


def _along(order: Order, block: Block, *, forwards: bool) -> None:
    start, shift = (block.source, block.target - block.source) if forwards else (block.target, block.source - block.target)
    neurons = np.arange(start, start + block.sources)
    moved = neurons[order[neurons] >= 0]
    images = order[moved]
    inside = (images >= start) & (images < start + block.sources)
    _set(order, moved[inside] + shift, images[inside] + shift)


def _heads(order: Order, wiring: Wiring) -> None:
    """A head neuron follows its members."""
    members = _members(wiring)
    owner = {frozenset(group): node for node, group in members.items()}
    for node, group in members.items():
        known = [neuron for neuron in group if order[neuron] >= 0]
        for other, neurons in owner.items():
            if known and {int(order[neuron]) for neuron in known} <= other:
                _set(order, np.array([node]), np.array([neurons]))


def _members(wiring: Wiring) -> dict[int, set[int]]:
    members: dict[int, set[int]] = {}
    for block in wiring.blocks:
        if block.edge_type == 11:
            members.setdefault(block.source, set()).update(range(block.target, block.target + block.targets))
    return members


def _set(order: Order, neurons: np.ndarray, images: np.ndarray) -> None:
    decided = order[neurons] >= 0
    if (order[neurons][decided] != images[decided]).any():
        raise NoSymmetryError(f"neurons {neurons[decided][:5]} are tied two ways")
    order[neurons] = images


def weight_order(wiring: Wiring, order: Order) -> Tensor:
    """Where each weight of the permuted flat vector comes from; asserts that the permuted graph is the graph itself. (n,) int64."""
    graph = expand(wiring)
    moved = order[graph.edge_index]
    structure = graph.edge_type >= 10
    rows = [np.stack([*ends[:, structure], graph.edge_type[structure]]) for ends in (graph.edge_index, moved)]
    before, after = (row[:, np.lexsort(row)] for row in rows)
    if not np.array_equal(before, after):
        raise NoSymmetryError("the structural edges change")
    placed = np.flatnonzero(graph.param_edge >= 0)
    edges = graph.param_edge[placed]
    tensor = np.repeat(np.arange(len(wiring.parameters)), [parameter.size for parameter in wiring.parameters])[placed]
    keys = [
        np.stack([tensor, graph.edge_type[edges], graph.param_slot[placed], *ends[:, edges]]) for ends in (graph.edge_index, moved)
    ]
    here, there = (np.lexsort(key[::-1]) for key in keys)
    if not np.array_equal(keys[0][:, here], keys[1][:, there]):
        raise NoSymmetryError("the edges change")
    place = np.arange(wiring.size)
    place[placed[there]] = placed[here]
    return torch.from_numpy(place)


def flat(model: nn.Module) -> Tensor:
    """The flat parameter vector."""
    return parameters_to_vector([parameter.detach() for parameter in model.parameters()])


def load(model: nn.Module, vector: Tensor) -> None:
    """Load a flat parameter vector."""
    with torch.no_grad():
        vector_to_parameters(vector, model.parameters())


def hidden_groups(wiring: Wiring) -> list[str]:
    """Parameters whose targets are hidden: weights end in them and others start from them; one name for each set of targets."""
    starts = {
        neuron for block in _weighted(wiring) if block.sources > 1 for neuron in range(block.source, block.source + block.sources)
    }
    names: dict[tuple[int, ...], str] = {}
    for block in _weighted(wiring):
        name = wiring.parameters[block.parameter].name
        neurons = targets(wiring, name)
        if len(wiring.parameters[block.parameter].shape) > 1 and len(neurons) > 1 and set(neurons.tolist()) <= starts:
            names.setdefault(tuple(neurons.tolist()), name)
    return list(names.values())


def _weighted(wiring: Wiring) -> list[Block]:
    return [block for block in wiring.blocks if block.parameter != STRUCTURE]


@dataclass(frozen=True)
class HeadNeurons:
    """One attention head: its head neuron and the ranges that point belong to it, query neurons first."""

    node: int
    groups: tuple[np.ndarray, ...]


def attention_layers(wiring: Wiring) -> list[list[HeadNeurons]]:
    """The heads of every attention layer, told by the ranges its query weights end in."""
    groups: dict[int, list[np.ndarray]] = {}
    for block in wiring.blocks:
        if block.edge_type == 11:
            groups.setdefault(block.source, []).append(np.arange(block.target, block.target + block.targets))
    layers = []
    for block in wiring.blocks:
        if block.edge_type == 7:
            ours = {node: own for node, own in groups.items() if block.target <= own[0][0] < block.target + block.targets}
            layers.append([HeadNeurons(node, tuple(own)) for node, own in sorted(ours.items(), key=lambda item: item[1][0][0])])
    return layers


def swap_heads(wiring: Wiring, first: HeadNeurons, second: HeadNeurons) -> Order:
    """The order in which two heads change places."""
    order = np.full(wiring.neurons, -1)
    pairs = [(np.array([first.node]), np.array([second.node])), *zip(first.groups, second.groups, strict=True)]
    for ours, theirs in pairs:
        _set(order, ours, theirs)
        _set(order, theirs, ours)
    return close(wiring, order)


def shuffle_head(wiring: Wiring, head: HeadNeurons, group: int) -> Order:
    """The order in which the neurons of one of a head's ranges move up by one."""
    order = np.full(wiring.neurons, -1)
    _set(order, head.groups[group], np.roll(head.groups[group], 1))
    return close(wiring, order)
