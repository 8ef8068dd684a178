"""The plan: a wiring cut into units of work, made once for each wiring and independent of the weights.

Large blocks become *panels*, dense rectangles that need no index at all. Small blocks, diagonals and self loops become *bundles*,
short edge lists that gather, so that a network of hundreds of small blocks costs a few units instead of hundreds. Units
stand in *groups*: partial sums are added up within a group, then group by group, always in the same order, so that the result is
the same bit for bit however many threads or processes share the groups.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Final

import torch
from torch import Tensor

from nowcast_server.nino.cache import LruCache
from nowcast_server.nino.graph import SELF_LOOP_FEATURE, STRUCTURE_FEATURE, block_edges, block_positions, word_positions
from nowcast_server.nino.options import EDGE_TYPES
from protos.wiring import STRUCTURE, Block, EdgeType, Wiring

GROUPS: Final = 16


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large the pieces of a plan are, in edges.

    Args:
        panel: of a panel. On a CPU large enough that its fixed cost vanishes, small enough that its standardised weights (640 KB)
            stay in the cache.
        tile: of a tile, whose two buffers of H floats (1 MB for H = 128) should fit a core's L2 cache.
        sources: of a panel at most, unless its targets are few.
        bundle: of a bundle.
        small: of a dense block that is bundled, at most.
    """

    panel: int = 32_768
    tile: int = 1024
    sources: int = 256
    bundle: int = 2048
    small: int = 1024


@dataclass(frozen=True, slots=True)
class Panel:
    """A dense rectangle of edges of one type, from `inner` sources to `outer` targets.

    The weight in slot f of the edge from its j-th source to its i-th target lies in the flat vector at
    `position + i * outer_stride + j * inner_stride + f * slot_stride`; a panel of structure has parameter -1.
    """

    edge_type: int
    parameter: int
    position: int
    sources: slice
    targets: slice
    outer: int
    inner: int
    outer_stride: int
    inner_stride: int
    slots: int
    slot_stride: int
    tile_edges: int

    @property
    def edges(self) -> int:
        return self.outer * self.inner

    @property
    def carries(self) -> bool:
        """Whether its edges carry weights."""
        return self.parameter != STRUCTURE


@dataclass(frozen=True, slots=True)
class Bundle:
    """Edges listed one by one.

    Args:
        source: (E,) int32.
        target: (E,) int32, rising.
        edge_type: (E,) int32, or (1,) where all are alike.
        rows: (R,) int64, the distinct targets.
        row: (E,) int64, each edge's place in `rows`.
        parameter: (E,) int64 index of each edge's tensor; empty for structure.
        position: (E, slots) int64 where its weights lie in the flat vector; empty for structure.
        feature: (E,) float32 what structural edges and self loops carry; empty for weights.
    """

    source: Tensor
    target: Tensor
    edge_type: Tensor
    rows: Tensor
    row: Tensor
    parameter: Tensor
    position: Tensor
    feature: Tensor

    @property
    def edges(self) -> int:
        return len(self.source)

    def to(self, device: torch.device) -> "Bundle":
        """With the indices of neurons on `device`; those into snapshots stay on the host."""
        source, target, kind, rows, row = (t.to(device) for t in self.tensors[:5])
        return Bundle(source, target, kind, rows, row, self.parameter, self.position, self.feature.to(device))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        names = ("source", "target", "edge_type", "rows", "row", "parameter", "position", "feature")
        return tuple(getattr(self, name) for name in names)

    @property
    def slots(self) -> int:
        return self.position.shape[1] if self.carries else 1

    @property
    def carries(self) -> bool:
        """Whether its edges carry weights."""
        return len(self.parameter) > 0


Unit = Panel | Bundle


@dataclass(frozen=True, slots=True)
class Group:
    """Units whose partial sums are added up first; all their targets lie in `rows`."""

    units: tuple[Unit, ...]
    rows: slice

    @property
    def edges(self) -> int:
        return sum(unit.edges for unit in self.units)


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything the engine needs to know of a wiring.

    Args:
        groups: every edge, self loops included; for WNN every weight.
        neurons: N; 0 for WNN.
        slots: the most weights an edge carries.
        type_counts: (N, 15) float32 incoming edges of each neuron by type.
        words: (N,) int64 word positions, see `word_positions`.
        uncovered: where weights lie that no block holds.
    """

    groups: tuple[Group, ...]
    neurons: int
    slots: int
    type_counts: Tensor
    words: Tensor
    uncovered: tuple[slice | Tensor, ...]

    @property
    def edges(self) -> int:
        return sum(group.edges for group in self.groups)

    @property
    def nbytes(self) -> int:
        units = [unit for group in self.groups for unit in group.units]
        tensors = [tensor for unit in units if isinstance(unit, Bundle) for tensor in unit.tensors]
        panels = sum(isinstance(unit, Panel) for unit in units)
        return sum(tensor.nbytes for tensor in (*tensors, self.type_counts, self.words)) + panels * _PANEL_BYTES

    def to(self, device: torch.device) -> "Plan":
        """The plan with all it needs there on `device`."""
        if device.type == "cpu":
            return self
        groups = tuple(
            Group(tuple(unit.to(device) if isinstance(unit, Bundle) else unit for unit in group.units), group.rows)
            for group in self.groups
        )
        counts, words = self.type_counts.to(device), self.words.to(device)
        return Plan(groups, self.neurons, self.slots, counts, words, self.uncovered)


_PANEL_BYTES: Final = 400
_PLANS: Final = LruCache[Plan](256 * 2**20, weigh=lambda plan: plan.nbytes)


def plan(wiring: Wiring, sizes: Sizes, *, graph: bool, device: torch.device) -> Plan:
    """The plan of a wiring, cached by its hash.

    With `graph`, of its whole neural graph; without, of the weights alone, every slot an edge of its own, as WNN sees them.
    """
    make = _plan_graph if graph else _plan_parameters
    return _PLANS.get(f"{graph}/{device}/{sizes}/{wiring.hash}", lambda: make(wiring, sizes).to(device))


def plan_bytes(wiring: Wiring, sizes: Sizes, *, graph: bool) -> int:
    """An upper estimate of what making a plan takes, without making it: it grows with the edges that are listed one by one."""
    listed = [block for block in wiring.blocks if not _is_large(block, sizes) and (graph or block.parameter != STRUCTURE)]
    edges = wiring.neurons + sum(block.edges for block in listed)
    panels = 2 * ((wiring.edges + wiring.size) // sizes.panel + sum(block.slots for block in wiring.blocks))
    numbers = sum(block.size for block in listed)
    return _EDGE_BYTES * edges + _POSITION_BYTES * numbers + 2 * 4 * EDGE_TYPES * wiring.neurons + panels * _PANEL_BYTES


_EDGE_BYTES: Final = 80
"""Of a listed edge, while it is sorted in: 70 were measured, and 20 for the place of each of its weights."""
_POSITION_BYTES: Final = 24


def _plan_graph(wiring: Wiring, sizes: Sizes) -> Plan:
    panels = [panel for block in wiring.blocks if _is_large(block, sizes) for panel in _cut(wiring, block, sizes)]
    small = [block for block in wiring.blocks if not _is_large(block, sizes)]
    structure = [block for block in small if block.parameter == STRUCTURE]
    bundles = [*_bundles(wiring, small, sizes), *_structure(wiring, structure, sizes)]
    counts = torch.zeros(EDGE_TYPES, wiring.neurons, dtype=torch.float32)
    for block in wiring.blocks:
        counts[block.edge_type, block.target : block.target + block.targets] += 1 if block.diagonal else block.sources
    counts[EdgeType.SELF_LOOP] += 1
    return Plan(
        (*_group(panels), *_group(bundles)),
        wiring.neurons,
        wiring.slots,
        counts.T.contiguous(),
        word_positions(wiring),
        _uncovered(wiring),
    )


def _plan_parameters(wiring: Wiring, sizes: Sizes) -> Plan:
    blocks = [slot for block in wiring.blocks if block.parameter != STRUCTURE for slot in _split_slots(block)]
    panels = [panel for block in blocks if _is_large(block, sizes) for panel in _cut(wiring, block, sizes)]
    bundles = list(_bundles(wiring, [block for block in blocks if not _is_large(block, sizes)], sizes))
    nothing = torch.zeros(0, EDGE_TYPES, dtype=torch.float32)
    return Plan((*_group(panels), *_group(bundles)), 0, 1, nothing, torch.zeros(0).long(), _uncovered(wiring))


def _uncovered(wiring: Wiring) -> tuple[slice | Tensor, ...]:
    left: list[slice | Tensor] = []
    holding: dict[int, list[Block]] = {}
    for block in wiring.blocks:
        holding.setdefault(block.parameter, []).append(block)
    for index, (parameter, offset) in enumerate(zip(wiring.parameters, wiring.offsets, strict=True)):
        blocks = holding.get(index, [])
        held = sum(block.size for block in blocks)
        if held == 0:
            left.append(slice(offset, offset + parameter.size))
        elif held < parameter.size:
            free = torch.ones(parameter.size, dtype=torch.bool)
            for block in blocks:
                free[block_positions(block)] = False
            left.append(offset + free.nonzero().flatten())
    return tuple(left)


def _is_large(block: Block, sizes: Sizes) -> bool:
    return not block.diagonal and block.edges > sizes.small


def _split_slots(block: Block) -> Iterator[Block]:
    for slot in range(block.slots):
        offset = block.offset + slot * block.slot_stride
        yield Block(
            block.edge_type,
            block.source,
            block.sources,
            block.target,
            block.targets,
            block.diagonal,
            block.parameter,
            offset,
            block.source_stride,
            block.target_stride,
        )


def _cut(wiring: Wiring, block: Block, sizes: Sizes) -> Iterator[Panel]:
    base = block.offset + (wiring.offsets[block.parameter] if block.parameter != STRUCTURE else 0)
    many = block.targets * sizes.sources >= sizes.panel
    inner_cuts = _even(block.sources, sizes.sources if many else sizes.tile)
    outer_cuts = _even(block.targets, max(1, sizes.panel // (inner_cuts[0][1] * block.slots)))
    for outer_start, outer in outer_cuts:
        for inner_start, inner in inner_cuts:
            source, target = block.source + inner_start, block.target + outer_start
            yield Panel(
                block.edge_type,
                block.parameter,
                base + outer_start * block.target_stride + inner_start * block.source_stride,
                slice(source, source + inner),
                slice(target, target + outer),
                outer,
                inner,
                block.target_stride,
                block.source_stride,
                block.slots,
                block.slot_stride,
                sizes.tile,
            )


def _even(count: int, most: int) -> list[tuple[int, int]]:
    """Cut 0..count into (start, length) pieces of nearly equal length, none above `most`."""
    pieces = -(-count // most)
    starts = [piece * count // pieces for piece in range(pieces + 1)]
    return [(start, stop - start) for start, stop in pairwise(starts)]


def _bundles(wiring: Wiring, blocks: Iterable[Block], sizes: Sizes) -> Iterator[Bundle]:
    """Bundle the blocks that carry weights, those of equal slots together."""
    carrying = sorted((block for block in blocks if block.parameter != STRUCTURE), key=lambda block: block.slots)
    for _, alike in groupby(carrying, key=lambda block: block.slots):
        listed = list(alike)
        edges = torch.cat([block_edges(block) for block in listed], dim=1)
        counts = torch.tensor([block.edges for block in listed])
        kinds = torch.tensor([block.edge_type for block in listed]).repeat_interleave(counts)
        parameters = torch.tensor([block.parameter for block in listed]).repeat_interleave(counts)
        positions = torch.cat([wiring.offsets[block.parameter] + block_positions(block) for block in listed])
        yield from _chop(edges, kinds, parameter=parameters, position=positions, most=sizes.bundle)


def _structure(wiring: Wiring, blocks: Sequence[Block], sizes: Sizes) -> Iterator[Bundle]:
    """Bundle small structural blocks and the self loops."""
    loops = torch.arange(wiring.neurons).expand(2, -1)
    edges = torch.cat([*(block_edges(block) for block in blocks), loops], dim=1)
    counts = torch.tensor([*(block.edges for block in blocks), wiring.neurons])
    kinds = torch.tensor([*(block.edge_type for block in blocks), int(EdgeType.SELF_LOOP)])
    features = torch.tensor([*(STRUCTURE_FEATURE for _ in blocks), SELF_LOOP_FEATURE], dtype=torch.float32)
    yield from _chop(edges, kinds.repeat_interleave(counts), feature=features.repeat_interleave(counts), most=sizes.bundle)


def _chop(
    edges: Tensor,
    kinds: Tensor,
    *,
    most: int,
    parameter: Tensor | None = None,
    position: Tensor | None = None,
    feature: Tensor | None = None,
) -> Iterator[Bundle]:
    order = edges[1].argsort(stable=True)
    for start, count in _even(len(order), most):
        part = order[start : start + count]
        source, target = edges[:, part].to(torch.int32)
        rows, row = target.long().unique(return_inverse=True)
        kind = kinds[part].to(torch.int32)
        yield Bundle(
            source,
            target,
            kind[:1] if bool((kind == kind[0]).all()) else kind,
            rows,
            row,
            torch.empty(0, dtype=torch.int64) if parameter is None else parameter[part],
            torch.empty(0, 0, dtype=torch.int64) if position is None else position[part],
            torch.empty(0, dtype=torch.float32) if feature is None else feature[part],
        )


def _group(units: Sequence[Unit]) -> Iterator[Group]:
    """Cut the units, in their order, into at most `GROUPS` groups of about equal cost."""
    total, done, group = sum(unit.edges for unit in units), 0, list[Unit]()
    for unit in units:
        group.append(unit)
        done += unit.edges
        if done * GROUPS >= total * (1 + (done - unit.edges) * GROUPS // total):
            yield Group(tuple(group), _span(group))
            group = []
    if group:
        yield Group(tuple(group), _span(group))


def _span(units: Sequence[Unit]) -> slice:
    first = min(unit.targets.start if isinstance(unit, Panel) else int(unit.rows[0]) for unit in units)
    last = max(unit.targets.stop if isinstance(unit, Panel) else int(unit.rows[-1]) + 1 for unit in units)
    return slice(first, last)
