"""What the engine computes for one unit of edges: the messages it sends to its targets, and the forecasts of its weights.

A unit goes a tile at a time. Everything of hidden size over edges lies in the two rooms of a tile, which fit a core's L2 cache.
Hidden vectors of edges meet those of neurons at their ends by broadcasting along a panel's two axes, and in a bundle by gathering.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch
from torch import Tensor, nn

from nowcast_server.nino.engine.bundles import Bundle
from nowcast_server.nino.engine.fold import Affine, Folded, NeuronStage
from nowcast_server.nino.engine.plan import Panel, Unit
from nowcast_server.nino.engine.snapshots import Read

Ends = tuple[Tensor, Tensor]  # what one stage adds at an edge's source and at its target: (N, H) each
Constant = Callable[[Tensor], Tensor]  # one stage's constant part of a tile (E, H), in the room given or in memory of its own


@dataclass(frozen=True, slots=True)
class Sums:
    """What a unit adds at its R targets."""

    rows: slice | Tensor  # of the neurons
    hidden: Tensor  # (R, width) sum of h over the edges into each, where width is H, or slots * context before the first stage
    modulated: Tensor  # (R, H) sum of scale(h) * B[s]


class Kernels:
    """The engine's inner loops, of a model on the device where units are computed."""

    def __init__(self, folded: Folded) -> None:
        self.folded = folded
        self._hidden = folded.last.matrix.shape[1]

    def messages(self, unit: Unit, read: Read, stage: NeuronStage, ends: Sequence[Ends | None], at_source: Tensor) -> Sums:
        """Sum the messages of a unit at its targets; `at_source` (N, H) is B."""
        if isinstance(unit, Panel):
            return self._dense_messages(unit, read, stage, ends, at_source)
        edges = _BundleEdges(unit, read.x)
        ((_, h, spare),) = self._walk(edges, stage.level, ends)
        scaled = edges.biased(stage.scale.bias)(spare).addmm_(h, stage.scale.matrix[: h.shape[1]])
        return Sums(unit.rows, edges.total(h), edges.total(scaled.mul_(edges.at_sources(at_source))))

    def _dense_messages(self, panel: Panel, read: Read, stage: NeuronStage, ends: Sequence[Ends | None], at_source: Tensor) -> Sums:
        edges, factor = _PanelEdges(panel, read.x), at_source[panel.sources]
        constant = stage.scale.bias[panel.block.edge_type] * factor.sum(dim=0)
        if stage.level == 0:
            # scale(h) = sum of x_c * matrix[c] + bias has few terms: with X_c the weights of snapshot c, the sum over sources of
            # scale * B is the sum over c of matrix[c] * (X_c B), which needs nothing of hidden size over edges
            z = read.x.view(-1, panel.outer, panel.inner)  # (slots * context, R, sources)
            terms = (z @ factor).mul_(stage.scale.matrix[: len(z), None])
            return Sums(panel.targets, z.sum(dim=2).T, terms.sum(dim=0).add_(constant))
        hidden, modulated = (at_source.new_empty(panel.outer, self._hidden) for _ in range(2))
        for index, h, spare in self._walk(edges, stage.level, ends):
            edges.total(index, h, hidden)
            torch.mm(h, stage.scale.matrix, out=spare)
            edges.by_target(spare).mul_(factor)
            edges.total(index, spare, modulated)
        return Sums(panel.targets, hidden, modulated.add_(constant))

    def forecasts(self, unit: Unit, read: Read, ends: Sequence[Ends | None], readout: tuple[Tensor, Tensor]) -> Tensor:
        """A unit's forecasts: (horizons, slots, *edges), in the weights' own scale if `read` has it; `readout` is `Folded.rows`."""
        edges: _Edges = _PanelEdges(unit, read.x) if isinstance(unit, Panel) else _BundleEdges(unit, read.x)
        matrix, bias = readout
        out = matrix.new_empty(len(matrix), unit.edges)
        parts, stages = torch.split(out, [len(x) for x in edges.x], dim=1), len(self.folded.edge_stages)
        last = _stage(edges, self.folded.last, None, level=stages)
        for index, h, spare in self._walk(edges, stages, ends):
            torch.addmm(bias, matrix, _advance(last, h, index, spare).T, out=parts[index])
        shaped = out.view(-1, unit.slots, *read.z.shape[2:])
        if read.scale is None or read.mean is None:
            return shaped
        return shaped.add_(read.z[:, -1]).mul_(read.scale).add_(read.mean)

    def _walk(self, edges: "_Edges", level: int, ends: Sequence[Ends | None]) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Tile by tile, h (E, H) after `level` stages (its weights if 0); and a spare room."""
        stages = [_stage(edges, self.folded.edge_stages[i].edge, ends[i], level=i) for i in range(level)]
        rooms = [_SCRATCH.take(slot, edges.x[0].shape[0], self._hidden, edges.x[0].device) for slot in range(2)]
        pairs = {count: [room[:count] for room in rooms] for count in {len(x) for x in edges.x}}  # views, made once
        for index, x in enumerate(edges.x):
            h, pair = x, pairs[len(x)]
            for turn, stage in enumerate(stages):
                h = _advance(stage, h, index, pair[turn % 2])
            yield index, h, pair[len(stages) % 2]


_Stage = tuple[Tensor, Sequence[Constant]]  # the matrix of h, and what is added besides, for each tile


def _stage(edges: "_Edges", affine: Affine, ends: Ends | None, *, level: int) -> _Stage:
    constants = [edges.biased(affine.bias)] * len(edges.x) if ends is None else edges.joined(ends, affine.bias)
    # weights may have fewer slots, and so columns, than the model takes
    return affine.matrix if level else affine.matrix[: edges.x[0].shape[1]], constants


def _advance(stage: _Stage, h: Tensor, index: int, room: Tensor) -> Tensor:
    """silu(constant + h @ matrix) of a tile, in `room` or elsewhere."""
    matrix, constants = stage
    return nn.functional.silu(constants[index](room).addmm_(h, matrix), inplace=True)


class _Scratch(threading.local):
    """Memory that a thread keeps from unit to unit: to have it back from the system costs more than what is computed in it. On a
    device nothing is kept: torch's allocator there gives it again at once, and to a training in the same process as well.
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


class _PanelEdges:
    """A panel of R targets with its standardised weights x, (slots * context, edges), in tiles of E: targets with all sources."""

    def __init__(self, panel: Panel, x: Tensor) -> None:
        self._panel = panel
        self._step = max(1, panel.tile_edges // panel.inner)
        self.x = torch.split(x.T, self._step * panel.inner)  # each tile's weights (E, slots * context), views

    def joined(self, ends: Ends, bias: Tensor) -> Sequence[Constant]:
        """For each tile, ends[0][s] + ends[1][t] + bias[type]."""
        sources, targets = ends[0][self._panel.sources], ends[1][self._panel.targets] + bias[self._panel.block.edge_type]
        return [partial(self._add, part, sources) for part in torch.split(targets[:, None], self._step)]

    def biased(self, bias: Tensor) -> Constant:
        """For every tile, bias[type]."""
        row = bias[self._panel.block.edge_type]
        return lambda room: room.copy_(row)

    def by_target(self, room: Tensor) -> Tensor:
        """The hidden vectors (E, H) of a tile as neurons meet them: (targets, sources, H)."""
        return room.view(-1, self._panel.inner, room.shape[1])

    def total(self, index: int, h: Tensor, out: Tensor) -> None:
        """Set rows of `out` (R, H) to the sum over the edges of tile `index` into each target; no other tile has these targets."""
        first = index * self._step
        torch.sum(self.by_target(h), dim=1, out=out[first : first + self._step])

    def _add(self, targets: Tensor, sources: Tensor, room: Tensor) -> Tensor:
        torch.add(targets, sources, out=self.by_target(room))
        return room


class _BundleEdges:
    """The same of a bundle, which is one tile."""

    def __init__(self, bundle: Bundle, x: Tensor) -> None:
        self._bundle = bundle
        self.x = (x.T,)
        self._taken = 2  # rooms 0 and 1 are those of the walk

    def joined(self, ends: Ends, bias: Tensor) -> Sequence[Constant]:
        bundle = self._bundle
        if len(bundle.joins):
            starts, rows = 3 * bundle.order, torch.cat((*ends, bias))
            return [lambda _: nn.functional.embedding_bag(bundle.joins, rows, starts, mode="sum")]
        at_target = self._select(ends[1], bundle.target)
        at_target += bias[bundle.edge_type] if len(bundle.edge_type) == 1 else self._select(bias, bundle.edge_type)
        return [lambda room: torch.add(self.at_sources(ends[0]), at_target, out=room)]

    def biased(self, bias: Tensor) -> Constant:
        if len(self._bundle.edge_type) == 1:
            return lambda room: room.copy_(bias[self._bundle.edge_type])
        return lambda room: torch.index_select(bias, 0, self._bundle.edge_type, out=room)

    def at_sources(self, vectors: Tensor) -> Tensor:
        return self._select(vectors, self._bundle.source)

    def total(self, vectors: Tensor) -> Tensor:
        """The sum of `vectors` (E, width) into each target, in the order of the edges on any device: (R, width)."""
        return nn.functional.embedding_bag(self._bundle.order, vectors, self._bundle.starts, mode="sum")

    def _select(self, vectors: Tensor, index: Tensor) -> Tensor:
        room = _SCRATCH.take(self._taken, len(index), vectors.shape[1], vectors.device)
        self._taken += 1
        return torch.index_select(vectors, 0, index, out=room)


_Edges = _PanelEdges | _BundleEdges
