"""A unit's edges, a tile at a time: how hidden vectors of edges meet those of the neurons at their ends.

A panel meets them by broadcasting along its two axes, a bundle by gathering. Everything of hidden size over edges lives in the
two buffers of a tile, which fit a core's L2 cache. All views are made once for a unit, so that a tile costs its arithmetic and
little else.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch
from torch import Tensor, nn

from nowcast_server.nino.engine.bundles import Bundle
from nowcast_server.nino.engine.plan import Panel

Ends = tuple[Tensor, Tensor]
"""What one stage adds at an edge's source and at its target: (N, H) each."""


@dataclass(frozen=True, slots=True)
class Buffer:
    """Room for the hidden vectors of a tile: `flat` (E, H), and the same in the shape in which neurons meet it."""

    flat: Tensor
    shaped: Tensor


Constant = Callable[[Buffer], Tensor]
"""One stage's constant part of a tile (E, H), in the buffer or in memory of its own."""


class _Scratch(threading.local):
    """Memory that a thread keeps from unit to unit: to have it back from the system costs more than what is computed in it.

    On a device nothing is kept: torch's allocator there gives it again at once, and to a training in the same process as well.
    """

    def __init__(self) -> None:
        self._kept: dict[int, Tensor] = {}

    def take(self, slot: int, rows: int, width: int, device: torch.device) -> Tensor:
        """Room `slot` as (rows, width) float32, with whatever it held."""
        if device.type != "cpu":
            return torch.empty(rows, width, dtype=torch.float32, device=device)
        kept = self._kept.get(slot)
        if kept is None or kept.numel() < rows * width:
            kept = self._kept[slot] = torch.empty(rows * width, dtype=torch.float32, device=device)
        return kept[: rows * width].view(rows, width)


_SCRATCH: Final = _Scratch()


class PanelEdges:
    """A panel with its standardised weights x (slots * context, E), cut into tiles: runs of targets with all of its sources.

    Shapes: R the panel's targets, H hidden, E the edges of a tile.
    """

    def __init__(self, panel: Panel, x: Tensor) -> None:
        self._panel = panel
        self._step = max(1, panel.tile_edges // panel.inner)
        self.x = torch.split(x.T, self._step * panel.inner)  # each tile's weights (E, slots * context), views

    def joined(self, ends: Ends, bias: Tensor) -> Sequence[Constant]:
        """For each tile, at_source[s] + at_target[t] + bias[type]."""
        sources, targets = ends[0][self._panel.sources], ends[1][self._panel.targets] + bias[self._panel.edge_type]
        return [partial(_add, part, sources) for part in torch.split(targets[:, None], self._step)]

    def biased(self, bias: Tensor) -> Constant:
        """For every tile, bias[type]."""
        return partial(_copy, bias[self._panel.edge_type])

    def buffer(self, flat: Tensor) -> Buffer:
        """The hidden vectors (E, H) of a tile as a buffer."""
        return Buffer(flat, flat.view(-1, self._panel.inner, flat.shape[1]))

    def at_sources(self, vectors: Tensor) -> Tensor:
        """vectors[s], broadcasting to a buffer's shape."""
        return vectors[self._panel.sources]

    def total(self, index: int, buffer: Buffer, out: Tensor) -> None:
        """Set rows of `out` (R, H) to the sum over the edges of tile `index` into each target; no other tile has these targets."""
        first = index * self._step
        torch.sum(buffer.shaped, dim=1, out=out[first : first + len(buffer.shaped)])

    def bias_total(self, bias: Tensor, vectors: Tensor) -> Tensor:
        """The sum of bias[type] * vectors[s] over all of the unit's edges into any target: (H,)."""
        return bias[self._panel.edge_type] * vectors[self._panel.sources].sum(dim=0)


class BundleEdges:
    """The same of a bundle, which is one tile."""

    def __init__(self, bundle: Bundle, x: Tensor) -> None:
        self._bundle = bundle
        self.x = (x.T,)
        self._taken = 2  # rooms 0 and 1 are the buffers

    def joined(self, ends: Ends, bias: Tensor) -> Sequence[Constant]:
        if len(self._bundle.joins):
            starts, rows = 3 * self._bundle.order, torch.cat((*ends, bias))
            return [lambda _: nn.functional.embedding_bag(self._bundle.joins, rows, starts, mode="sum")]
        at_target = self._select(ends[1], self._bundle.target)
        at_target += (
            bias[self._bundle.edge_type] if len(self._bundle.edge_type) == 1 else self._select(bias, self._bundle.edge_type)
        )
        return [partial(_add, self.at_sources(ends[0]), at_target)]

    def biased(self, bias: Tensor) -> Constant:
        if len(self._bundle.edge_type) == 1:
            return partial(_copy, bias[self._bundle.edge_type])
        return lambda buffer: torch.index_select(bias, 0, self._bundle.edge_type, out=buffer.flat)

    def buffer(self, flat: Tensor) -> Buffer:
        return Buffer(flat, flat)

    def at_sources(self, vectors: Tensor) -> Tensor:
        """vectors[s] (E, H)."""
        return self._select(vectors, self._bundle.source)

    def total(self, vectors: Tensor) -> Tensor:
        """The sum of `vectors` (E, width) into each target, in the order of the edges on any device: (R, width)."""
        return nn.functional.embedding_bag(self._bundle.order, vectors, self._bundle.starts, mode="sum")

    def _select(self, vectors: Tensor, index: Tensor) -> Tensor:
        room = _SCRATCH.take(self._taken, len(index), vectors.shape[1], vectors.device)
        self._taken += 1
        return torch.index_select(vectors, 0, index, out=room)


Edges = PanelEdges | BundleEdges


def buffers(edges: Edges, hidden: int) -> list[tuple[Buffer, Buffer]]:
    """Two buffers for each tile: all tiles share their memory."""
    most = edges.x[0].shape[0]
    pair = [_SCRATCH.take(slot, most, hidden, edges.x[0].device) for slot in range(2)]
    made: dict[int, tuple[Buffer, Buffer]] = {}
    for count in {len(x) for x in edges.x}:
        first, second = (edges.buffer(flat[:count]) for flat in pair)
        made[count] = (first, second)
    return [made[len(x)] for x in edges.x]


def _add(one: Tensor, other: Tensor, buffer: Buffer) -> Tensor:
    torch.add(one, other, out=buffer.shaped)
    return buffer.flat


def _copy(row: Tensor, buffer: Buffer) -> Tensor:
    return buffer.flat.copy_(row)
