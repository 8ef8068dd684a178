"""The streaming engine itself: a forecast from the plan, the neurons' side of it, and what it takes."""

from collections.abc import Sequence
from functools import partial
from typing import Final

import torch
from torch import Tensor, nn

from nowcast_server.nino.checkpoint import Checkpoint
from nowcast_server.nino.engine.bundles import Bundle
from nowcast_server.nino.engine.fold import NeuronStage, fold
from nowcast_server.nino.engine.kernels import Ends, Kernels, Sums
from nowcast_server.nino.engine.plan import Plan, Unit, plan, plan_bytes
from nowcast_server.nino.engine.snapshots import Snapshots, panel_view
from nowcast_server.nino.engine.workers import Placement, Sizes, aside, in_order, run, sizes_for, with_tensors
from nowcast_server.nino.laplacian import laplacian_features
from protos.wiring import Wiring

LITTLE: Final = 16_384  # edges; fewer are sooner computed than handed to other threads


class StreamingEngine:
    """Forecasts with NiNo or WNN, exactly, in memory O(neurons * hidden); holds no state but the folded weights, so that one
    instance serves any number of threads. `sizes` are those of the pieces of its work, by default what suits the device.
    """

    def __init__(self, checkpoint: Checkpoint, *, device: str | torch.device = "cpu", sizes: Sizes | None = None) -> None:
        self.options = checkpoint.options
        self.device = torch.device(device)
        self.sizes = sizes or sizes_for(self.device, hidden=checkpoint.options.hidden)
        folded = fold(checkpoint.options, checkpoint.tensors)
        self._kernels = Kernels(with_tensors(folded, lambda tensor: tensor.to(self.device, torch.float32).contiguous()))

    def forecast(
        self, wiring: Wiring, states: Tensor | Sequence[Tensor], *, horizons: tuple[int, ...], node_pe: Tensor | None = None
    ) -> Tensor:
        """Forecast a context, raw: (context, n), or its snapshots (n,) one by one; float32, float16 or bfloat16.

        Arguments are trusted: a forecaster has checked them, and a server that no weight is in two blocks (`check_coverage`: what
        is in none, though as many are counted, would be whatever memory held). `node_pe` (neurons, laplacian) replaces the wiring's
        own Laplacian features. Weights in no block keep their last value.

        Returns:
            (len(horizons), n) float32 on the engine's device.
        """
        if node_pe is None and self.options.graph:
            node_pe = laplacian_features(wiring, count=self.options.laplacian, device=self.device)
        threads = self._threads()
        if self.device.type == "cpu":
            return aside(lambda: self._forecast(wiring, states, node_pe, threads).run(horizons))
        with torch.no_grad():
            return self._forecast(wiring, states, node_pe, threads).run(horizons)

    def neurons(self, wiring: Wiring, states: Tensor | Sequence[Tensor], *, node_pe: Tensor) -> Tensor:
        """The neurons (N, H) as the readout's edges find them, on the CPU; see `forecast`. Not for WNN or a single layer."""
        threads = self._threads()
        return aside(lambda: self._forecast(wiring, states, node_pe, threads).converge()[0])

    def _forecast(self, wiring: Wiring, states: Tensor | Sequence[Tensor], node_pe: Tensor | None, threads: int) -> "_Forecast":
        work = plan(wiring, self.sizes, graph=self.options.graph, device=self.device)
        little = work.single or work.edges < LITTLE
        place = Placement(self.device, 1 if little else threads, self.sizes)
        rows = [row.detach().to(self.device, non_blocking=True).contiguous() for row in states]
        snapshots = Snapshots(rows, wiring, plan=work, placement=place)
        return _Forecast(work, snapshots, self._kernels, place, node_pe)

    def memory_bytes(self, wiring: Wiring, *, horizons: int = 1) -> int:
        """An upper estimate of what a forecast allocates on its device, besides the snapshots it reads; it needs no snapshots."""
        vectors = 4 * self.options.hidden  # bytes
        stages = sum(stage.at_source is not None for stage in self._kernels.folded.edge_stages)
        # at the last convolution: x and B, the sums twice (those of units under way apart), and both ends of every stage
        neurons = wiring.neurons * vectors * (2 + 4 + 2 * stages)
        little = wiring.edges + wiring.neurons + wiring.size < LITTLE  # one thread computes it, see `_forecast`
        units = 2 * (1 if little else self._threads()) * (self.sizes.unit_bytes + 8 * self.sizes.bundle * vectors)
        return plan_bytes(wiring, self.sizes, graph=self.options.graph) + neurons + units + 4 * horizons * wiring.size

    def _threads(self) -> int:
        """On the CPU as many as torch has in the caller's thread; on a device one queues everything."""
        return torch.get_num_threads() if self.device.type == "cpu" else 1


class _Forecast:
    """One forecast under way, with Laplacian features `node_pe` (N, laplacian), None for WNN."""

    def __init__(self, plan: Plan, snapshots: Snapshots, kernels: Kernels, place: Placement, node_pe: Tensor | None) -> None:
        self._plan, self._snapshots, self._kernels, self._place = plan, snapshots, kernels, place
        self._folded = kernels.folded
        self._node_pe = node_pe

    def run(self, horizons: Sequence[int]) -> Tensor:
        return self._read_out(self.converge()[1], horizons)

    def converge(self) -> tuple[Tensor, list[Ends | None]]:
        """The neurons (N, H) after the last convolution that a forecast needs, and what they contribute to every edge stage."""
        ends, convolutions = list[Ends | None](), iter(self._folded.neuron_stages)
        x = self._neurons_in()
        for stage in self._folded.edge_stages:
            if stage.at_source is None:
                ends.append(None)
                continue
            convolution = next(convolutions)
            sums = self._gather(convolution, ends, self._projected(x, convolution.to_source))
            self._place.each(partial(self._update, x, convolution, sums), len(x))
            assert stage.at_target is not None
            ends.append((self._projected(x, stage.at_source), self._projected(x, stage.at_target)))
        return x, ends

    def _neurons_in(self) -> Tensor:
        """Before the first stage: (N, H); none for WNN."""
        if self._folded.neurons_in is None or self._node_pe is None:
            return torch.empty(0, device=self._place.device)
        weight, bias = self._folded.neurons_in
        x, words = self._new(len(self._node_pe), weight), self._folded.words
        features = self._node_pe

        def embed(rows: slice) -> None:
            torch.addmm(bias, features[rows].to(x.device, torch.float32), weight, out=x[rows])
            if words is not None:
                word = self._plan.words[rows]
                # words beyond the vocabulary are neurons like any other
                x[rows] += words[word.masked_fill(word >= len(words), 0)]

        self._place.each(embed, len(x))
        return x

    def _new(self, count: int, matrix: Tensor) -> Tensor:
        return torch.empty(count, matrix.shape[1], dtype=torch.float32, device=self._place.device)

    def _projected(self, x: Tensor, matrix: Tensor) -> Tensor:
        """What each neuron contributes somewhere: x @ matrix (N, H)."""
        out = self._new(len(x), matrix)
        self._place.each(lambda rows: torch.mm(x[rows], matrix, out=out[rows]), len(x))
        return out

    def _update(self, x: Tensor, stage: NeuronStage, sums: Sums, rows: slice) -> None:
        """Take the sums over the edges into each neuron into some rows of `x` (N, H)."""
        part, degree = x[rows], self._plan.degree[rows]
        mean, types = sums.hidden[rows] / degree, self._plan.types[rows]
        scale, shift = (affine.matrix[: mean.shape[1]] for affine in (stage.scale, stage.shift))
        message = torch.addmm(stage.to_target_bias, part, stage.to_target)
        message *= torch.addmm(types @ stage.scale.bias, mean, scale)
        message += sums.modulated[rows] / degree
        message += torch.addmm(types @ stage.shift.bias, mean, shift)
        x[rows] = nn.functional.silu(torch.addmm(stage.bias, part, stage.own).addmm_(message, stage.message), inplace=True)

    def _gather(self, stage: NeuronStage, ends: Sequence[Ends | None], at_source: Tensor) -> Sums:
        """Sums over the edges into every neuron, added up unit by unit in their order."""

        def messages(unit: Unit) -> Sums:
            return self._kernels.messages(unit, self._snapshots.read(unit), stage, ends, at_source)

        parts = in_order(messages, self._plan.units, threads=self._place.threads)
        if len(self._plan.units) == 1:
            return next(parts)  # each neuron is a target, if only of its self loop
        width = self._plan.slots * self._snapshots.context if stage.level == 0 else at_source.shape[1]
        count = len(at_source)
        total = Sums(slice(0, count), at_source.new_zeros(count, width), torch.zeros_like(at_source))
        for part in parts:
            narrow = total.hidden[:, : part.hidden.shape[1]]
            if isinstance(part.rows, slice):
                narrow[part.rows] += part.hidden
                total.modulated[part.rows] += part.modulated
            else:
                narrow.index_add_(0, part.rows, part.hidden)
                total.modulated.index_add_(0, part.rows, part.modulated)
        return total

    def _read_out(self, ends: Sequence[Ends | None], horizons: Sequence[int]) -> Tensor:
        last = self._snapshots.rows[-1]
        out = torch.empty(len(horizons), len(last), dtype=torch.float32, device=last.device)
        carrying = [unit for unit in self._plan.units if unit.carries]
        readout = {slots: self._folded.rows(horizons, slots=slots) for slots in {unit.slots for unit in carrying}}

        def forecast(unit: Unit) -> None:
            weights = self._snapshots.read(unit)
            scatter(out, unit, self._kernels.forecasts(unit, weights, ends, readout[unit.slots]))

        run(forecast, carrying, threads=self._place.threads)
        self._snapshots.restore(out)
        for left in self._plan.uncovered:
            out[:, left] = last[left].float()
        return out


def scatter(out: Tensor, unit: Unit, forecasts: Tensor) -> None:
    """Put a unit's forecasts (horizons, slots, *edges) in their places in `out` (horizons, n)."""
    if isinstance(unit, Bundle):
        values = forecasts.flatten(1)
        if len(unit.places):
            values = values.index_select(1, unit.places)
        out.scatter_(1, unit.weights.expand(len(out), -1), values)
        return
    for row, forecast in zip(out, forecasts, strict=True):
        panel_view(row, unit).copy_(forecast)
