"""A unit's edges, a tile at a time: how hidden vectors of edges meet those of the neurons at their ends.

A panel meets them by broadcasting along its two axes, a bundle by gathering. Everything of hidden size over edges lives in the
two buffers of a tile, which fit a core's L2 cache. All views are made once for a unit, so that a tile costs its arithmetic and
little else.
"""

import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from nowcast_server.nino.engine.plan import Bundle, Panel, Unit

Ends = tuple[Tensor, Tensor]
"""What one stage adds at an edge's source and at its target: (N, H) each."""

Terms = tuple[Tensor, Tensor]
"""Two tensors whose broadcast sum is one stage's constant part of a tile, in the tile's shape."""


@dataclass(frozen=True, slots=True)
class Buffer:
    """Room for the hidden vectors of a tile: `flat` (E, H), and the same in the shape in which neurons meet it."""

    flat: Tensor
    shaped: Tensor


class _Scratch(threading.local):
    """Memory that a thread keeps from unit to unit: to have it back from the system costs more than what is computed in it."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, torch.device], Tensor] = {}

    def take(self, slot: int, rows: int, width: int, device: torch.device) -> Tensor:
        """Room `slot` as (rows, width) float32, with whatever it held."""
        kept = self._kept.get((slot, device))
        if kept is None or kept.numel() < rows * width:
            kept = self._kept[slot, device] = torch.empty(rows * width, dtype=torch.float32, device=device)
        return kept[: rows * width].view(rows, width)


_SCRATCH: Final = _Scratch()


class Edges(ABC):
    """A unit, cut into tiles.

    Args:
        x: (slots * context, E) standardised weights of the unit.

    Shapes: R the unit's targets, H hidden, E the edges of a tile.
    """

    x: Sequence[Tensor]
    """Each tile's standardised weights (E, slots * context), views."""

    targets: int
    """R."""

    @abstractmethod
    def joined(self, ends: Ends, bias: Tensor) -> Sequence[Terms]:
        """For each tile, at_source[s] + at_target[t] + bias[type]."""

    @abstractmethod
    def biased(self, bias: Tensor) -> Tensor:
        """bias[type], broadcasting to (E, H)."""

    @abstractmethod
    def at_sources(self, vectors: Tensor) -> Tensor:
        """vectors[s], broadcasting to a buffer's shape."""

    @abstractmethod
    def add_up(self, index: int, buffer: Buffer, out: Tensor) -> None:
        """Add to `out` (R, H) the sum over the edges of tile `index` into each target; it is zero before the first tile."""

    @abstractmethod
    def add_bias(self, bias: Tensor, vectors: Tensor, out: Tensor) -> None:
        """Add to `out` (R, H) the sum of bias[type] * vectors[s] over all of the unit's edges into each target."""

    @abstractmethod
    def _shape(self, count: int) -> tuple[int, ...]: ...

    def buffers(self, hidden: int) -> list[tuple[Buffer, Buffer]]:
        """Two buffers for each tile: all tiles share their memory."""
        most = self.x[0].shape[0]
        pair = [_SCRATCH.take(slot, most, hidden, self.x[0].device) for slot in range(2)]
        made: dict[int, tuple[Buffer, Buffer]] = {}
        for count in {len(x) for x in self.x}:
            first, second = (Buffer(flat[:count], flat[:count].view(*self._shape(count), hidden)) for flat in pair)
            made[count] = (first, second)
        return [made[len(x)] for x in self.x]


class PanelEdges(Edges):
    """A panel: tiles are runs of targets with all of the panel's sources."""

    def __init__(self, panel: Panel, x: Tensor) -> None:
        self._panel = panel
        self._step = max(1, panel.tile_edges // panel.inner)
        self.x = torch.split(x.T, self._step * panel.inner)
        self.targets = panel.outer

    def joined(self, ends: Ends, bias: Tensor) -> Sequence[Terms]:
        sources, targets = ends[0][self._panel.sources], ends[1][self._panel.targets] + bias[self._panel.edge_type]
        return [(part, sources) for part in torch.split(targets[:, None], self._step)]

    def biased(self, bias: Tensor) -> Tensor:
        return bias[self._panel.edge_type]

    def at_sources(self, vectors: Tensor) -> Tensor:
        return vectors[self._panel.sources]

    def add_up(self, index: int, buffer: Buffer, out: Tensor) -> None:
        first = index * self._step
        torch.sum(buffer.shaped, dim=1, out=out[first : first + len(buffer.shaped)])  # no other tile has these targets

    def add_bias(self, bias: Tensor, vectors: Tensor, out: Tensor) -> None:
        out += bias[self._panel.edge_type] * vectors[self._panel.sources].sum(dim=0)

    def _shape(self, count: int) -> tuple[int, ...]:
        return count // self._panel.inner, self._panel.inner


class BundleEdges(Edges):
    """A bundle: one tile."""

    def __init__(self, bundle: Bundle, x: Tensor) -> None:
        self._bundle = bundle
        self.x = (x.T,)
        self.targets = len(bundle.rows)
        self._taken = 2  # rooms 0 and 1 are the buffers

    def joined(self, ends: Ends, bias: Tensor) -> Sequence[Terms]:
        at_target = self._select(ends[1], self._bundle.target)
        return [(self.at_sources(ends[0]), at_target.add_(self.biased(bias)))]

    def biased(self, bias: Tensor) -> Tensor:
        return self._select(bias, self._bundle.edge_type)

    def at_sources(self, vectors: Tensor) -> Tensor:
        return self._select(vectors, self._bundle.source)

    def _select(self, vectors: Tensor, index: Tensor) -> Tensor:
        room = _SCRATCH.take(self._taken, len(index), vectors.shape[1], vectors.device)
        self._taken += 1
        return torch.index_select(vectors, 0, index, out=room)

    def add_up(self, index: int, buffer: Buffer, out: Tensor) -> None:
        del index
        out.index_add_(0, self._bundle.row, buffer.flat)

    def add_bias(self, bias: Tensor, vectors: Tensor, out: Tensor) -> None:
        out.index_add_(0, self._bundle.row, self.at_sources(vectors).mul_(self.biased(bias)))

    def _shape(self, count: int) -> tuple[int, ...]:
        return (count,)


def edges_of(unit: Unit, x: Tensor) -> Edges:
    """Cut a unit with weights `x` (slots * context, E) into tiles."""
    return PanelEdges(unit, x) if isinstance(unit, Panel) else BundleEdges(unit, x)
