"""A wiring laid out for training: large dense blocks stay blocks, everything small is gathered into edge lists."""

from abc import ABC, abstractmethod
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from nowcast_server.nino.engine.bundles import SELF_LOOP_FEATURE, STRUCTURE_FEATURE, block_edges, block_positions
from nowcast_server.nino.laplacian import laplacian_features
from protos.wiring import STRUCTURE, Block, EdgeType, Wiring

LEAST_DENSE = 64
"""Dense blocks of fewer edges join an edge list: an operation on a small block costs as much as on a large one."""


@dataclass(frozen=True, eq=False)
class Part(ABC):
    """Edges that are computed together; E of them, each with as many slots.

    Args:
        positions: (E, slots) where in the flat vector each weight lies; empty for structure.
        constant: (E, slots) what an edge without weights carries; zero where there are weights.
        edge_type: (E,) or a single one (1,).
    """

    positions: Tensor
    constant: Tensor
    edge_type: Tensor

    def features(self, z: Tensor) -> Tensor:
        """Standardised snapshots (windows, context, n) on the edges: (windows, *shape, slots * context)."""
        weights = z[:, :, self.positions.clamp(min=0)]  # (windows, context, E, slots)
        weights = torch.where(self.positions >= 0, weights, self.constant)
        return self.shaped(weights.permute(0, 2, 3, 1).flatten(2))

    @abstractmethod
    def shaped(self, edges: Tensor) -> Tensor:
        """(windows, E, ...) in the part's own shape, (windows, *shape, ...)."""

    @abstractmethod
    def at_source(self, neurons: Tensor) -> Tensor:
        """(windows, N, H), broadcastable against (windows, *shape, H)."""

    @abstractmethod
    def at_target(self, neurons: Tensor) -> Tensor:
        """(windows, N, H), broadcastable against (windows, *shape, H)."""

    @abstractmethod
    def total(self, edges: Tensor, neurons: int) -> Tensor:
        """Sum of (windows, *shape, H) over each neuron's incoming edges: (windows, N, H)."""


@dataclass(frozen=True, eq=False)
class DensePart(Part):
    """Every source with every target; shape (sources, targets)."""

    source: slice
    target: slice

    def shaped(self, edges: Tensor) -> Tensor:
        """See `Part.shaped`."""
        return torch.unflatten(edges, 1, (self.source.stop - self.source.start, -1))

    def at_source(self, neurons: Tensor) -> Tensor:
        """See `Part.at_source`."""
        return neurons[:, self.source, None]

    def at_target(self, neurons: Tensor) -> Tensor:
        """See `Part.at_target`."""
        return neurons[:, None, self.target]

    def total(self, edges: Tensor, neurons: int) -> Tensor:
        """See `Part.total`."""
        return self.spread(edges.sum(1), neurons)

    def spread(self, targets: Tensor, neurons: int) -> Tensor:
        """(windows, targets, H) among all neurons, zero elsewhere: (windows, N, H)."""
        return torch.nn.functional.pad(targets, (0, 0, self.target.start, neurons - self.target.stop))


@dataclass(frozen=True, eq=False)
class ListPart(Part):
    """Edges one by one; shape (E,)."""

    source: Tensor
    target: Tensor

    def shaped(self, edges: Tensor) -> Tensor:
        """See `Part.shaped`."""
        return edges

    def at_source(self, neurons: Tensor) -> Tensor:
        """See `Part.at_source`."""
        return neurons[:, self.source]

    def at_target(self, neurons: Tensor) -> Tensor:
        """See `Part.at_target`."""
        return neurons[:, self.target]

    def total(self, edges: Tensor, neurons: int) -> Tensor:
        """See `Part.total`."""
        return edges.new_zeros(edges.shape[0], neurons, edges.shape[2]).index_add(1, self.target, edges)


@dataclass(frozen=True, eq=False)
class Plan:
    """What training needs of a wiring.

    Args:
        neurons: N.
        sizes: of the parameter tensors.
        parts: all edges, self loops included.
        incoming: (N, 1) float32, how many edges end at each neuron, at least 1.
        weights: (m,) where in the flat vector the parts' weights lie, part by part.
        edge_type: (m,) of each of these weights.
        node_pe: (N, laplacian) float32.
    """

    neurons: int
    sizes: tuple[int, ...]
    parts: tuple[Part, ...]
    incoming: Tensor
    weights: Tensor
    edge_type: Tensor
    node_pe: Tensor

    @property
    def edges(self) -> int:
        return sum(len(part.positions) for part in self.parts)


@lru_cache(maxsize=512)
def plan(wiring: Wiring, *, laplacian: int = 8) -> Plan:
    """Lay out `wiring`; kept in memory."""
    dense = [block for block in wiring.blocks if not block.diagonal and block.edges >= LEAST_DENSE]
    parts: list[Part] = [_dense(wiring, block) for block in dense]
    small: dict[int, list[Block]] = defaultdict(list)
    for block in wiring.blocks:
        if block.diagonal or block.edges < LEAST_DENSE:
            small[block.slots].append(block)
    loops = Block(int(EdgeType.SELF_LOOP), 0, wiring.neurons, 0, wiring.neurons, diagonal=True)
    small[1].append(loops)
    parts += [_list(wiring, blocks) for blocks in small.values()]
    incoming = torch.zeros(wiring.neurons)
    for block in (*wiring.blocks, loops):
        incoming.index_add_(0, block_edges(block)[1], torch.ones(block.edges))
    held = [part.positions >= 0 for part in parts]
    return Plan(
        neurons=wiring.neurons,
        sizes=tuple(parameter.size for parameter in wiring.parameters),
        parts=tuple(parts),
        incoming=incoming.clamp(min=1)[:, None],
        weights=torch.cat([part.positions[mask] for part, mask in zip(parts, held, strict=True)]),
        edge_type=torch.cat(
            [part.edge_type[:, None].expand_as(mask)[mask] for part, mask in zip(parts, held, strict=True)],
        ),
        node_pe=laplacian_features(wiring, count=laplacian),
    )


def _positions(wiring: Wiring, block: Block) -> Tensor:
    if block.parameter == STRUCTURE:
        return torch.full((block.edges, 1), -1)
    return wiring.offsets[block.parameter] + block_positions(block)


def _constant(block: Block) -> float:
    if block.edge_type == EdgeType.SELF_LOOP:
        return SELF_LOOP_FEATURE
    return STRUCTURE_FEATURE if block.parameter == STRUCTURE else 0.0


def _dense(wiring: Wiring, block: Block) -> DensePart:
    return DensePart(
        positions=_positions(wiring, block),
        constant=torch.full((block.edges, block.slots), _constant(block)),
        edge_type=torch.tensor([block.edge_type]),
        source=slice(block.source, block.source + block.sources),
        target=slice(block.target, block.target + block.targets),
    )


def _list(wiring: Wiring, blocks: list[Block]) -> ListPart:
    ends = torch.cat([block_edges(block) for block in blocks], dim=1)
    return ListPart(
        positions=torch.cat([_positions(wiring, block) for block in blocks]),
        constant=torch.cat([torch.full((block.edges, block.slots), _constant(block)) for block in blocks]),
        edge_type=torch.cat([torch.full((block.edges,), block.edge_type) for block in blocks]),
        source=ends[0],
        target=ends[1],
    )
