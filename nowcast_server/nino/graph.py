"""The edges of a wiring's blocks, one by one, and what edges without weights carry."""

from typing import Final

import torch
from torch import Tensor

from protos.wiring import Block, Wiring

STRUCTURE_FEATURE: Final = 1.0
"""What structural edges (residual connections, attention heads) carry in slot 0 of every snapshot, not standardised."""

SELF_LOOP_FEATURE: Final = 2.0
"""What self loops carry in slot 0 of every snapshot, not standardised."""


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
