"""What the engine computes for one unit of edges: the messages it sends to its targets, and the forecasts of its weights."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nowcast_server.nino.engine.fold import Affine, Folded, NeuronStage
from nowcast_server.nino.engine.plan import Panel, Unit
from nowcast_server.nino.engine.products import ACTIVATE, Products
from nowcast_server.nino.engine.snapshots import Read
from nowcast_server.nino.engine.tiles import Buffer, Edges, Ends, Terms, edges_of


@dataclass(frozen=True, slots=True)
class Sums:
    """What a unit adds at its R targets.

    Args:
        rows: of the neurons.
        hidden: (R, width) sum of h over the edges into each, where width is H, or slots * context before the first stage.
        modulated: (R, H) sum of scale(h) * B[s].
    """

    rows: slice | Tensor
    hidden: Tensor
    modulated: Tensor


class Kernels:
    """The engine's inner loops.

    Args:
        folded: the model, on the device where units are computed.
        products: of H x H.
    """

    def __init__(self, folded: Folded, *, products: Products) -> None:
        self.folded = folded
        self._products = products
        self._activate = ACTIVATE[folded.options.activation]
        self._hidden = folded.options.hidden

    def messages(self, unit: Unit, read: Read, stage: NeuronStage, ends: Sequence[Ends | None], at_source: Tensor) -> Sums:
        """Sum the messages of a unit at its targets; `at_source` (N, H) is B."""
        rows = unit.targets if isinstance(unit, Panel) else unit.rows
        edges = edges_of(unit, read.x)
        modulated = at_source.new_zeros(edges.targets, self._hidden)
        edges.add_bias(stage.scale.bias, at_source, modulated)
        if stage.level == 0:
            return Sums(rows, self._first_messages(unit, read, stage, at_source, modulated), modulated)
        hidden, mixed = torch.zeros_like(modulated), torch.zeros_like(modulated)
        factor, steps = edges.at_sources(at_source), self._steps(edges, stage.level, ends)
        for index, (x, buffers) in enumerate(zip(edges.x, edges.buffers(self._hidden), strict=True)):
            h, spare = self._chain(x, steps, index, buffers)
            edges.add_up(index, h, hidden)
            self._products.set(h.flat, stage.scale, spare.flat)
            spare.shaped.mul_(factor)
            edges.add_up(index, spare, mixed)
        return Sums(rows, hidden, modulated.add_(mixed))

    def _first_messages(self, unit: Unit, read: Read, stage: NeuronStage, at_source: Tensor, modulated: Tensor) -> Tensor:
        # scale(h) = sum of x_c * matrix[c] + bias has few terms: with X_c the weights of snapshot c, the sum over sources of
        # scale * B is the sum over c of matrix[c] * (X_c B), which needs nothing of hidden size over edges
        x, edges = read.x, edges_of(unit, read.x)
        matrix = stage.scale.matrix[: len(x)]
        if isinstance(unit, Panel):
            z = x.view(-1, unit.outer, unit.inner)  # (slots * context, R, sources)
            modulated += (z @ at_source[unit.sources]).mul_(matrix[:, None]).sum(dim=0)
            return z.sum(dim=2).T
        modulated.index_add_(0, unit.row, (x.T @ matrix).mul_(edges.at_sources(at_source)))
        return x.new_zeros(len(unit.rows), len(x)).index_add_(0, unit.row, x.T.contiguous())

    def forecasts(
        self, unit: Unit, read: Read, ends: Sequence[Ends | None], readout: tuple[Tensor, Tensor], *, horizons: int
    ) -> Tensor:
        """Forecast a unit's weights at `horizons` horizons, in their own scale: (horizons, slots, *edges).

        `readout` is a matrix and a bias, see `Folded.rows`.
        """
        edges, (matrix, bias) = edges_of(unit, read.x), readout
        out = bias.repeat(1, unit.edges)
        parts = torch.split(out, [len(x) for x in edges.x], dim=1)
        steps = self._steps(edges, len(self.folded.edge_stages), ends)
        last = self._step(edges, self.folded.last, edges.biased(self.folded.last.bias), first=not steps)
        for index, (x, buffers) in enumerate(zip(edges.x, edges.buffers(self._hidden), strict=True)):
            h, spare = self._chain(x, steps, index, buffers)
            self._advance(h.flat if steps else x, last, index, spare)
            parts[index].addmm_(matrix, spare.flat.T)
        shaped = out.view(horizons, unit.slots, *read.z.shape[2:])
        if self.folded.options.residual:
            shaped += read.z[:, -1]
        return shaped.mul_(read.scale).add_(read.mean)

    def _steps(self, edges: Edges, level: int, ends: Sequence[Ends | None]) -> list["_Step"]:
        """The first `level` stages."""
        stages = zip(self.folded.edge_stages[:level], ends, strict=False)
        return [
            self._step(edges, stage.edge, edges.biased(stage.edge.bias), first=index == 0)
            if end is None
            else self._step(edges, stage.edge, edges.joined(end, stage.edge.bias), first=index == 0)
            for index, (stage, end) in enumerate(stages)
        ]

    @staticmethod
    def _step(edges: Edges, affine: Affine, constants: Sequence[Terms] | Tensor, *, first: bool) -> "_Step":
        each = [constants] * len(edges.x) if isinstance(constants, Tensor) else constants
        return _Step(affine, each, affine.matrix[: edges.x[0].shape[1]] if first else None)

    def _chain(self, x: Tensor, steps: Sequence["_Step"], index: int, buffers: tuple[Buffer, Buffer]) -> tuple[Buffer, Buffer]:
        """The vectors h of tile `index` after the given stages, and a spare buffer."""
        (spare, h), before = buffers, x
        for step in steps:
            self._advance(before, step, index, spare)
            h, spare = spare, h
            before = h.flat
        return h, spare

    def _advance(self, h: Tensor, step: "_Step", index: int, out: Buffer) -> None:
        """Set `out` to act(constant + h @ matrix)."""
        constant = step.constants[index]
        if isinstance(constant, tuple):
            torch.add(*constant, out=out.shaped)
        else:
            out.flat.copy_(constant)
        if step.first is None:
            self._products.add(h, step.affine, out.flat)
        else:
            out.flat.addmm_(h, step.first)
        self._activate(out.flat)


@dataclass(frozen=True, slots=True)
class _Step:
    """One stage, made ready for a unit.

    Args:
        affine: of h.
        constants: what is added besides, for each tile.
        first: where h is the weights themselves, the rows of the matrix for as many slots as they have; None elsewhere.
    """

    affine: Affine
    constants: Sequence[Terms | Tensor]
    first: Tensor | None
