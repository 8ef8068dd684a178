"""The plan: a wiring cut into units of work, made once for each wiring and independent of the weights.

Large blocks become *panels*, dense rectangles that need no index at all. Small blocks, diagonals and self loops become *bundles*,
short edge lists that gather: hundreds of small blocks cost a few units, and a small network a single one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from nowcast_server.nino.cache import LruCache
from nowcast_server.nino.checkpoint import EDGE_TYPES
from nowcast_server.nino.engine.bundles import (
    Bundle,
    block_positions,
    chop,
    even,
    listed_structure,
    listed_weights,
    together,
    word_positions,
)
from nowcast_server.nino.engine.workers import Sizes, with_tensors
from protos.wiring import STRUCTURE, Block, EdgeType, Wiring


@dataclass(frozen=True, slots=True)
class Panel:
    """A dense rectangle of a block's edges, from `inner` sources to `outer` targets; its first weight is at `position` of the
    flat vector, the others lie by the block's strides.
    """

    block: Block
    position: int
    sources: slice
    targets: slice
    outer: int
    inner: int
    slots: int
    tile_edges: int

    @property
    def edges(self) -> int:
        return self.outer * self.inner

    @property
    def carries(self) -> bool:
        """Whether its edges carry weights."""
        return self.block.parameter != STRUCTURE


Unit = Panel | Bundle


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything the engine needs to know of a wiring."""

    units: tuple[Unit, ...]  # every edge, self loops included; for WNN every weight
    slots: int  # the most weights an edge carries
    degree: Tensor  # (N, 1) float32 incoming edges of each neuron, at least 1: its self loop
    types: Tensor  # (N, 15) float32 their shares by type
    words: Tensor  # (N,) int64 word positions, see `word_positions`
    uncovered: tuple[slice | Tensor, ...]  # where weights lie that no block holds
    tensor_sizes: Tensor  # (tensors,) float64 weights of each tensor

    @property
    def edges(self) -> int:
        return sum(unit.edges for unit in self.units)

    @property
    def single(self) -> bool:
        """Whether one bundle has all edges, of any kind."""
        return any(isinstance(unit, Bundle) and len(unit.joins) > 0 for unit in self.units)

    @property
    def nbytes(self) -> int:
        own = sum(tensor.nbytes for tensor in (self.degree, self.types, self.words, self.tensor_sizes))
        return own + sum(unit.nbytes if isinstance(unit, Bundle) else _PANEL_BYTES for unit in self.units)


_PANEL_BYTES: Final = 400
_PLANS: Final = LruCache[Plan](256 * 2**20, weigh=lambda plan: plan.nbytes)


def plan(wiring: Wiring, sizes: Sizes, *, graph: bool, device: torch.device) -> Plan:
    """The plan of a wiring, cached by its hash; without `graph`, of its weights alone, each an edge, as WNN sees them."""

    def make() -> Plan:
        made = _make(wiring, sizes, graph=graph)
        moved: Plan = made if device.type == "cpu" else with_tensors(made, lambda tensor: tensor.to(device))
        return moved

    return _PLANS.get(f"{graph}/{device}/{sizes}/{wiring.hash}", make)


def plan_bytes(wiring: Wiring, sizes: Sizes, *, graph: bool) -> int:
    """An upper estimate of what making a plan takes, without making it: it grows with the edges that are listed one by one."""
    listed = [block for block in wiring.blocks if not _is_large(block, sizes) and (graph or block.parameter != STRUCTURE)]
    padding = 0
    if graph and wiring.edges <= sizes.bundle:
        listed, padding = list(wiring.blocks), _POSITION_BYTES * wiring.slots * wiring.edges
    edges = wiring.neurons + sum(block.edges for block in listed)
    panels = 2 * ((wiring.edges + wiring.size) // sizes.panel + sum(block.slots for block in wiring.blocks))
    numbers = sum(block.size for block in listed)
    rest = 3 * 4 * EDGE_TYPES * wiring.neurons + 8 * len(wiring.parameters) + panels * _PANEL_BYTES
    return _EDGE_BYTES * edges + _POSITION_BYTES * numbers + padding + rest


_EDGE_BYTES: Final = 100  # of a listed edge, while it is sorted in, besides the place of each of its weights
_POSITION_BYTES: Final = 24


def _make(wiring: Wiring, sizes: Sizes, *, graph: bool) -> Plan:
    counts = torch.zeros(EDGE_TYPES, wiring.neurons if graph else 0, dtype=torch.float32)
    for block in wiring.blocks:
        counts[block.edge_type, block.target : block.target + block.targets] += 1 if block.diagonal else block.sources
    counts[EdgeType.SELF_LOOP] += 1
    return Plan(
        _units(wiring, sizes, graph=graph),
        wiring.slots if graph else 1,
        counts.sum(dim=0)[:, None],
        (counts / counts.sum(dim=0)).T.contiguous(),
        word_positions(wiring),
        _uncovered(wiring),
        torch.tensor([parameter.size for parameter in wiring.parameters], dtype=torch.float64),
    )


def _units(wiring: Wiring, sizes: Sizes, *, graph: bool) -> tuple[Unit, ...]:
    if graph and wiring.edges <= sizes.bundle:  # some padding and gathering costs less than several times as many operations
        everything = together(wiring, list(listed_weights(wiring, wiring.blocks)), listed_structure(wiring, wiring.blocks))
        return tuple(chop(wiring, everything, sizes.bundle))
    blocks = wiring.blocks if graph else _slots(wiring)
    panels = [panel for block in blocks if _is_large(block, sizes) for panel in _cut(wiring, block, sizes)]
    small = [block for block in blocks if not _is_large(block, sizes)]
    listed = list(listed_weights(wiring, small))
    if graph:
        listed.append(listed_structure(wiring, small))
    return (*panels, *(bundle for edges in listed for bundle in chop(wiring, edges, sizes.bundle)))


def _slots(wiring: Wiring) -> Sequence[Block]:
    """The blocks with weights, each slot a block of its own."""
    return [
        replace(block, offset=block.offset + slot * block.slot_stride, slots=1, slot_stride=0)
        for block in wiring.blocks
        if block.parameter != STRUCTURE
        for slot in range(block.slots)
    ]


def _uncovered(wiring: Wiring) -> tuple[slice | Tensor, ...]:
    left: list[slice | Tensor] = []
    holding: dict[int, list[Block]] = {}
    for block in wiring.blocks:
        holding.setdefault(block.parameter, []).append(block)
    for index, (parameter, offset) in enumerate(zip(wiring.parameters, wiring.offsets, strict=True)):
        blocks = holding.get(index, [])
        if not blocks:
            left.append(slice(offset, offset + parameter.size))
        elif sum(block.size for block in blocks) < parameter.size:
            free = torch.ones(parameter.size, dtype=torch.bool)
            for block in blocks:
                free[block_positions(block)] = False
            left.append(offset + free.nonzero().flatten())
    return tuple(left)


def _is_large(block: Block, sizes: Sizes) -> bool:
    return not block.diagonal and block.edges > sizes.small


def _cut(wiring: Wiring, block: Block, sizes: Sizes) -> Iterator[Panel]:
    base = block.offset + (wiring.offsets[block.parameter] if block.parameter != STRUCTURE else 0)
    many = block.targets * sizes.sources >= sizes.panel
    inner_cuts = even(block.sources, sizes.sources if many else sizes.tile)
    for outer_start, outer in even(block.targets, max(1, sizes.panel // (inner_cuts[0][1] * block.slots))):
        for inner_start, inner in inner_cuts:
            source, target = block.source + inner_start, block.target + outer_start
            position = base + outer_start * block.target_stride + inner_start * block.source_stride
            sources, targets = slice(source, source + inner), slice(target, target + outer)
            yield Panel(block, position, sources, targets, outer, inner, block.slots, sizes.tile)
