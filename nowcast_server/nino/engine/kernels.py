"""What the engine computes for one unit of edges: the messages it sends to its targets, and the forecasts of its weights."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nowcast_server.nino.engine.bundles import Bundle
from nowcast_server.nino.engine.fold import Affine, Folded, NeuronStage
from nowcast_server.nino.engine.plan import Panel, Unit
from nowcast_server.nino.engine.snapshots import Read
from nowcast_server.nino.engine.tiles import Buffer, BundleEdges, Constant, Edges, Ends, PanelEdges, buffers


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
        if isinstance(unit, Bundle):
            return self._listed_messages(unit, read, stage, ends, at_source)
        return self._dense_messages(unit, read, stage, ends, at_source)

    def _dense_messages(self, panel: Panel, read: Read, stage: NeuronStage, ends: Sequence[Ends | None], at_source: Tensor) -> Sums:
        edges = PanelEdges(panel, read.x)
        constant = edges.bias_total(stage.scale.bias, at_source)
        if stage.level == 0:
            # scale(h) = sum of x_c * matrix[c] + bias has few terms: with X_c the weights of snapshot c, the sum over sources of
            # scale * B is the sum over c of matrix[c] * (X_c B), which needs nothing of hidden size over edges
            z = read.x.view(-1, panel.outer, panel.inner)  # (slots * context, R, sources)
            terms = (z @ at_source[panel.sources]).mul_(stage.scale.matrix[: len(z), None])
            return Sums(panel.targets, z.sum(dim=2).T, terms.sum(dim=0).add_(constant))
        hidden, modulated = (at_source.new_empty(panel.outer, self._hidden) for _ in range(2))
        factor = edges.at_sources(at_source)
        for index, h, spare in self._walk(edges, read, stage.level, ends, keep=read.keep):
            edges.total(index, edges.buffer(h), hidden)
            torch.mm(h, stage.scale.matrix, out=spare.flat)
            spare.shaped.mul_(factor)
            edges.total(index, spare, modulated)
        return Sums(panel.targets, hidden, modulated.add_(constant))

    def _listed_messages(
        self, bundle: Bundle, read: Read, stage: NeuronStage, ends: Sequence[Ends | None], at_source: Tensor
    ) -> Sums:
        edges = BundleEdges(bundle, read.x)
        ((_, h, spare),) = self._walk(edges, read, stage.level, ends, keep=read.keep)
        scale = _Step(stage.scale.matrix[: h.shape[1]], [edges.biased(stage.scale.bias)])
        modulated = scale.multiply(h, 0, spare).mul_(edges.at_sources(at_source))
        return Sums(bundle.rows, edges.total(h), edges.total(modulated))

    def forecasts(
        self, unit: Unit, read: Read, ends: Sequence[Ends | None], readout: tuple[Tensor, Tensor], *, horizons: int
    ) -> Tensor:
        """Forecast a unit's weights at `horizons` horizons: (horizons, slots, *edges), in their own scale if `read` says which.

        `readout` is a matrix and a bias, see `Folded.rows`.
        """
        edges: Edges = PanelEdges(unit, read.x) if isinstance(unit, Panel) else BundleEdges(unit, read.x)
        matrix, bias = readout
        out = matrix.new_empty(len(matrix), unit.edges)
        parts, stages = torch.split(out, [len(x) for x in edges.x], dim=1), len(self.folded.edge_stages)
        last = self._step(edges, self.folded.last, [edges.biased(self.folded.last.bias)] * len(parts), level=stages)
        for index, h, spare in self._walk(edges, read, stages, ends, keep=False):
            torch.addmm(bias, matrix, last.advance(h, index, spare).T, out=parts[index])
        shaped = out.view(horizons, unit.slots, *read.z.shape[2:])
        if read.scale is None or read.mean is None:
            return shaped
        return shaped.add_(read.z[:, -1]).mul_(read.scale).add_(read.mean)

    def _walk(
        self, edges: Edges, read: Read, level: int, ends: Sequence[Ends | None], *, keep: bool
    ) -> Iterator[tuple[int, Tensor, Buffer]]:
        """The vectors h (E, H) of each tile after the first `level` stages, its weights if there are none, and a spare buffer.

        With `keep` they are left for the next walk.
        """
        known = max((each for each in read.hidden if each <= level), default=0)
        steps = self._steps(edges, known, level, ends)
        for index, (x, pair) in enumerate(zip(edges.x, buffers(edges, self._hidden), strict=True)):
            h = read.hidden[known][index] if known else x
            for turn, step in enumerate(steps):
                last = turn + 1 == len(steps)
                room = edges.buffer(torch.empty_like(pair[0].flat)) if keep and last else pair[turn % 2]
                h = step.advance(h, index, room)
            if keep and steps:
                read.hidden.setdefault(level, []).append(h)
            yield index, h, pair[len(steps) % 2]

    def _steps(self, edges: Edges, first: int, level: int, ends: Sequence[Ends | None]) -> list["_Step"]:
        """The stages from `first` to `level`."""
        steps = []
        for index in range(first, level):
            affine, end = self.folded.edge_stages[index].edge, ends[index]
            constants = edges.joined(end, affine.bias) if end is not None else [edges.biased(affine.bias)] * len(edges.x)
            steps.append(self._step(edges, affine, constants, level=index))
        return steps

    @staticmethod
    def _step(edges: Edges, affine: Affine, constants: Sequence[Constant], *, level: int) -> "_Step":
        # weights may have fewer slots, and so columns, than the model takes
        return _Step(affine.matrix if level else affine.matrix[: edges.x[0].shape[1]], constants)


@dataclass(frozen=True, slots=True)
class _Step:
    """One stage, made ready for a unit."""

    matrix: Tensor  # of h
    constants: Sequence[Constant]  # what is added besides, for each tile

    def advance(self, h: Tensor, index: int, room: Buffer) -> Tensor:
        """silu(constant + h @ matrix), in `room` or elsewhere."""
        return nn.functional.silu(self.multiply(h, index, room), inplace=True)

    def multiply(self, h: Tensor, index: int, room: Buffer) -> Tensor:
        """Constant + h @ matrix, in `room` or elsewhere."""
        return self.constants[index](room).addmm_(h, self.matrix)
