"""The neural graph of a wiring as PyTorch Geometric data: every edge and every weight's place, spelt out."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from protos.wiring import STRUCTURE, Block, EdgeType, Wiring

if TYPE_CHECKING:
    from torch_geometric.data import Data

STRUCTURE_FEATURE = 1.0
"""What structural edges (residual connections, attention heads) carry in slot 0 of every snapshot, not standardised."""

SELF_LOOP_FEATURE = 2.0
"""What self loops carry in slot 0 of every snapshot, not standardised."""


def to_graph(wiring: Wiring) -> "Data":
    """Materialise the graph of `wiring`: its E edges block by block, then one self loop for each of the N neurons.

    Within a block edges run source by source; parallel edges stay separate.

    Returns:
        A `torch_geometric.data.Data` with, for n parameters,

        - `edge_index` (2, E) int64: source and target neuron of each edge,
        - `edge_type` (E,) int64: its `EdgeType`,
        - `param_edge`, `param_slot` (n,) int64: the edge and the slot each parameter sits in; -1 for weights in no block,
        - `word` (N,) int64: 1 + position of the neurons that stand for words, 0 for all others,
        - `num_nodes` N.
    """
    from torch_geometric.data import Data

    edge_index = torch.empty(2, wiring.edges, dtype=torch.int64)
    edge_type = torch.full((wiring.edges,), int(EdgeType.SELF_LOOP), dtype=torch.int64)
    param_edge = torch.full((wiring.size,), -1, dtype=torch.int64)
    param_slot = torch.full((wiring.size,), -1, dtype=torch.int64)
    start = 0
    for block in wiring.blocks:
        rows = slice(start, start + block.edges)
        edge_index[:, rows] = block_edges(block)
        edge_type[rows] = block.edge_type
        if block.parameter != STRUCTURE:
            positions = wiring.offsets[block.parameter] + block_positions(block)  # (edges, slots)
            param_edge[positions] = torch.arange(start, start + block.edges)[:, None]
            param_slot[positions] = torch.arange(block.slots)
        start += block.edges
    edge_index[:, start:] = torch.arange(wiring.neurons)
    return Data(
        edge_index=edge_index,
        edge_type=edge_type,
        param_edge=param_edge,
        param_slot=param_slot,
        word=word_positions(wiring),
        num_nodes=wiring.neurons,
    )


def block_edges(block: Block) -> Tensor:
    """Source and target of each edge of the block: (2, edges) int64."""
    sources = torch.arange(block.source, block.source + block.sources)
    targets = torch.arange(block.target, block.target + block.targets)
    if block.diagonal:
        return torch.stack((sources, targets))
    return torch.stack((sources.repeat_interleave(block.targets), targets.repeat(block.sources)))


def block_positions(block: Block) -> Tensor:
    """Where in its tensor each weight of the block lies: (edges, slots) int64."""
    source = torch.arange(block.sources) * block.source_stride
    target = torch.arange(block.targets) * block.target_stride
    edges = source + target if block.diagonal else (source[:, None] + target).flatten()
    return block.offset + edges[:, None] + torch.arange(block.slots) * block.slot_stride


def word_positions(wiring: Wiring) -> Tensor:
    """1 + i for the i-th neuron of the first word embedding's sources, 0 for every other neuron: (neurons,) int64."""
    word = torch.zeros(wiring.neurons, dtype=torch.int64)
    words = wiring.words
    word[words.start : words.stop] = torch.arange(1, len(words) + 1)
    return word
