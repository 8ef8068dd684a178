"""The neurons' side of the engine: their first vectors, and what the averaged messages make of them, a run of rows at a time."""

import torch
from torch import Tensor

from nowcast_server.nino.engine.fold import EdgeStage, Folded, NeuronStage
from nowcast_server.nino.engine.kernels import Sums
from nowcast_server.nino.engine.placement import Placement
from nowcast_server.nino.engine.plan import Plan
from nowcast_server.nino.engine.products import ACTIVATE
from nowcast_server.nino.engine.tiles import Ends


class Neurons:
    """All neurons of a network, as they stand between two stages.

    Args:
        folded: the model.
        plan: of the network.
        placement: where.
        node_pe: (N, laplacian) Laplacian features.
    """

    def __init__(self, folded: Folded, plan: Plan, placement: Placement, node_pe: Tensor) -> None:
        self._folded, self._plan, self._placement = folded, plan, placement
        self._activate = ACTIVATE[folded.options.activation]
        self._features = self.x = node_pe.to(placement.device, torch.float32)
        """(N, H), or before the first stage the features themselves (N, laplacian)."""
        if folded.neurons_in or folded.words is not None:
            self.x = self._new()
            placement.each(lambda rows: self._embed(rows, node_pe), plan.neurons)

    def at_source(self, stage: NeuronStage) -> Tensor:
        """What each contributes to messages as a source, B: (N, H)."""
        out = self._new()
        self._placement.each(lambda rows: torch.addmm(stage.to_source_bias, self.x[rows], stage.to_source, out=out[rows]), len(out))
        return out

    def update(self, stage: NeuronStage, sums: Sums) -> None:
        """Take in the sums over the edges into every neuron."""
        out = self._new() if self.x is self._features else self.x  # the features are the caller's
        self._placement.each(lambda rows: self._update(rows, stage, sums, out), len(out))
        self.x = out

    def ends(self, stage: EdgeStage) -> Ends:
        """What each contributes to an edge stage as its source and as its target."""
        to_source, to_target = stage.at_source, stage.at_target
        assert to_source is not None
        assert to_target is not None
        sources, targets = self._new(), self._new()

        def project(rows: slice) -> None:
            torch.mm(self.x[rows], to_source, out=sources[rows])
            torch.mm(self.x[rows], to_target, out=targets[rows])

        self._placement.each(project, len(self.x))
        return sources, targets

    def _new(self) -> Tensor:
        shape = (self._plan.neurons, self._folded.options.hidden)
        return torch.empty(shape, dtype=torch.float32, device=self._placement.device)

    def _embed(self, rows: slice, node_pe: Tensor) -> None:
        self.x[rows].zero_()
        part = node_pe[rows].to(self.x.device, torch.float32)
        for index, (weight, bias) in enumerate(self._folded.neurons_in):
            part = torch.addmm(bias, self._activate(part) if index else part, weight)
            self.x[rows] = part
        if self._folded.words is not None:
            word = self._plan.words[rows]
            # words beyond the vocabulary are neurons like any other
            self.x[rows] += self._folded.words[word.masked_fill(word >= len(self._folded.words), 0)]

    def _update(self, rows: slice, stage: NeuronStage, sums: Sums, out: Tensor) -> None:
        x, degree = self.x[rows], self._plan.degree[rows]
        mean, types = sums.hidden[rows] / degree, self._plan.types[rows, : len(stage.scale.bias)]
        scale, shift = (affine.matrix[: mean.shape[1]] for affine in (stage.scale, stage.shift))
        message = torch.addmm(stage.to_target_bias, x, stage.to_target)
        message *= torch.addmm(types @ stage.scale.bias, mean, scale)
        message += sums.modulated[rows] / degree
        message += torch.addmm(types @ stage.shift.bias, mean, shift)
        out[rows] = self._activate(torch.addmm(stage.bias, x, stage.own).addmm_(message, stage.message))
