"""Bundles: edges listed one by one, sorted by target, whatever blocks they come from."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import groupby, pairwise
from typing import Final

import torch
from torch import Tensor, nn

from protos.wiring import STRUCTURE, Block, EdgeType, Wiring

STRUCTURE_FEATURE: Final = 1.0  # what structural edges carry in slot 0 of every snapshot, not standardised
SELF_LOOP_FEATURE: Final = 2.0  # the same of self loops
CARRIED: Final = (0.0, STRUCTURE_FEATURE, SELF_LOOP_FEATURE)
"""What edges carry where they have no weight. In a network small enough for one list of edges, it follows the flat vector."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """Edges listed one by one."""

    source: Tensor  # (E,) int32
    target: Tensor  # (E,) int32, rising
    edge_type: Tensor  # (E,) int32, or (1,) where all are alike
    rows: Tensor  # (R,) int64, the distinct targets
    starts: Tensor  # (R,) int32, where the edges of each begin
    order: Tensor  # (E,) int32, 0, 1, …
    parameter: Tensor  # (E,) int64 index of each edge's tensor; empty if the edges have no weights, or only some have
    # (E, slots) int64 where its weights lie in the flat vector; empty if they have none. If only some edges have weights, what the
    # others carry follows the flat vector, see `CARRIED`.
    position: Tensor
    feature: Tensor  # (E,) float32 what edges without weights carry; empty if some have any
    weights: Tensor  # (K,) int64 where the weights lie in the flat vector, slot by slot
    places: Tensor  # (K,) int64 where each of them lies in (slots, E); empty if all edges have all their weights
    joins: Tensor  # (3 E,) int32 source, N + target and 2 N + type of each edge, of a network's only bundle; else empty

    @property
    def edges(self) -> int:
        return len(self.source)

    @property
    def nbytes(self) -> int:
        return sum(getattr(self, field.name).nbytes for field in fields(self))

    @property
    def slots(self) -> int:
        return self.position.shape[1] if len(self.position) else 1

    @property
    def carries(self) -> bool:
        """Whether edges of it carry weights."""
        return len(self.weights) > 0


@dataclass(frozen=True, slots=True)
class Listed:
    """Edges in any order, to be bundled."""

    ends: Tensor  # (2, E)
    kinds: Tensor
    parameter: Tensor
    position: Tensor
    feature: Tensor


def listed_weights(wiring: Wiring, blocks: Iterable[Block]) -> Iterator[Listed]:
    """The edges of blocks that carry weights, those of equal slots together."""
    carrying = sorted((block for block in blocks if block.parameter != STRUCTURE), key=lambda block: block.slots)
    for _, alike in groupby(carrying, key=lambda block: block.slots):
        listed = list(alike)
        counts = torch.tensor([block.edges for block in listed])
        yield Listed(
            torch.cat([block_edges(block) for block in listed], dim=1),
            torch.tensor([block.edge_type for block in listed]).repeat_interleave(counts),
            torch.tensor([block.parameter for block in listed]).repeat_interleave(counts),
            torch.cat([wiring.offsets[block.parameter] + block_positions(block) for block in listed]),
            torch.empty(0, dtype=torch.float32),
        )


def listed_structure(wiring: Wiring, blocks: Sequence[Block]) -> Listed:
    """The edges of structural blocks, and the self loops."""
    loops = Block(EdgeType.SELF_LOOP, 0, wiring.neurons, 0, wiring.neurons, diagonal=True)
    listed = [*(block for block in blocks if block.parameter == STRUCTURE), loops]
    counts = torch.tensor([block.edges for block in listed])
    features = torch.tensor([SELF_LOOP_FEATURE if block is loops else STRUCTURE_FEATURE for block in listed], dtype=torch.float32)
    return Listed(
        torch.cat([block_edges(block) for block in listed], dim=1),
        torch.tensor([int(block.edge_type) for block in listed]).repeat_interleave(counts),
        torch.empty(0, dtype=torch.int64),
        torch.empty(0, 0, dtype=torch.int64),
        features.repeat_interleave(counts),
    )


def together(wiring: Wiring, weights: Sequence[Listed], structure: Listed) -> Listed:
    """Edges of any kind as one list."""
    slots = max(1, *(edges.position.shape[1] for edges in weights)) if weights else 1
    carried = torch.full((len(structure.kinds), 1), wiring.size + CARRIED.index(STRUCTURE_FEATURE))
    carried[structure.feature == SELF_LOOP_FEATURE] = wiring.size + CARRIED.index(SELF_LOOP_FEATURE)
    lists, positions = [*weights, structure], [*(edges.position for edges in weights), carried]
    nothing = wiring.size + CARRIED.index(0.0)
    return Listed(
        torch.cat([edges.ends for edges in lists], dim=1),
        torch.cat([edges.kinds for edges in lists]),
        structure.parameter,
        torch.cat([nn.functional.pad(each, (0, slots - each.shape[1]), value=nothing) for each in positions]),
        structure.feature[:0],
    )


def chop(wiring: Wiring, listed: Listed, most: int) -> Iterator[Bundle]:
    """Bundle the edges of a list, at most so many in one."""
    order = listed.ends[1].argsort(stable=True)
    for start, count in even(len(order), most):
        yield _bundle(wiring, listed, order[start : start + count])


def _bundle(wiring: Wiring, listed: Listed, part: Tensor) -> Bundle:
    """The edges `part` (E,) of a list as a bundle."""
    source, target = listed.ends[:, part].to(torch.int32)
    rows, counts = target.long().unique_consecutive(return_counts=True)
    kind = listed.kinds[part].to(torch.int32)
    mixed = not len(listed.parameter) and not len(listed.feature)
    position = listed.position[part] if len(listed.position) else listed.position
    weights = position.T.flatten()
    places = (weights < wiring.size).nonzero().flatten()
    return Bundle(
        source,
        target,
        kind[:1] if bool((kind == kind[0]).all()) else kind,
        rows,
        (counts.cumsum(0) - counts).to(torch.int32),
        torch.arange(len(part), dtype=torch.int32),
        listed.parameter[part] if len(listed.parameter) else listed.parameter,
        position,
        listed.feature[part] if len(listed.feature) else listed.feature,
        weights[places],
        places if mixed else places[:0],
        torch.stack((source, wiring.neurons + target, 2 * wiring.neurons + kind), dim=1).flatten() if mixed else kind[:0],
    )


def even(count: int, most: int) -> list[tuple[int, int]]:
    """Cut 0..count into (start, length) pieces of nearly equal length, none above `most`."""
    pieces = -(-count // most)
    starts = [piece * count // pieces for piece in range(pieces + 1)]
    return [(start, stop - start) for start, stop in pairwise(starts)]


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
