"""The streaming engine itself."""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from nowcast_server.nino.cache import LruCache
from nowcast_server.nino.checkpoint import Checkpoint
from nowcast_server.nino.engine.bundles import Bundle
from nowcast_server.nino.engine.fold import Folded, NeuronStage, fold
from nowcast_server.nino.engine.kernels import Kernels, Sums
from nowcast_server.nino.engine.neurons import Neurons
from nowcast_server.nino.engine.placement import Placement, placement
from nowcast_server.nino.engine.plan import Plan, Unit, plan, plan_bytes
from nowcast_server.nino.engine.products import PRODUCTS
from nowcast_server.nino.engine.snapshots import Snapshots, panel_view
from nowcast_server.nino.engine.tiles import Ends
from nowcast_server.nino.engine.workers import aside, in_order, run
from nowcast_server.nino.laplacian import laplacian_features
from nowcast_server.nino.precision import Precision
from nowcast_server.streams import own_stream
from protos.wiring import Wiring


class StreamingEngine:
    """Forecasts with NiNo or WNN, exactly, in memory O(neurons * hidden); see the package's docstring.

    It holds no state but the folded weights, so one instance serves any number of threads.

    Args:
        checkpoint: the weights.
        device: where to compute.
        precision: of the products, see `Precision`; docs/gpu.md has the error of each.
    """

    def __init__(self, checkpoint: Checkpoint, *, device: str | torch.device = "cpu", precision: Precision = "float32") -> None:
        self.options = checkpoint.options
        self.device = torch.device(device)
        folded = fold(checkpoint.options, checkpoint.tensors).to(self.device)
        self._kernels = Kernels(folded, products=PRODUCTS[precision]())

    def forecast(
        self, wiring: Wiring, states: Tensor | Sequence[Tensor], *, horizons: tuple[int, ...], node_pe: Tensor | None
    ) -> Tensor:
        """Forecast a context, raw: (context, n), or its snapshots (n,) one by one; float32, float16 or bfloat16.

        Arguments are trusted: a forecaster has checked them, and a server that no weight is in two blocks (`check_coverage`: what
        is in none, though as many are counted, would be whatever memory held). `node_pe` (neurons, laplacian) replaces the wiring's
        own Laplacian features. Weights in no block keep their last value.

        Returns:
            (len(horizons), n) float32 on the device of `states`.
        """
        if node_pe is None and self.options.graph:
            node_pe = _features(wiring, self.options.laplacian, self.device)
        if self.device.type == "cpu":
            return aside(lambda: self._forecast(wiring, states, horizons, node_pe))
        with own_stream(self.device, shared=states[0].device.type == self.device.type), torch.no_grad():
            return self._forecast(wiring, states, horizons, node_pe).to(states[0].device)

    def _forecast(
        self, wiring: Wiring, states: Tensor | Sequence[Tensor], horizons: tuple[int, ...], node_pe: Tensor | None
    ) -> Tensor:
        place = placement(self.device)
        work = plan(wiring, place.sizes, graph=self.options.graph, device=self.device)
        little = work.single or work.edges < LITTLE
        if little:
            place.threads = 1
        rows = [row.detach().to(self.device, non_blocking=True).contiguous() for row in states]
        snapshots = Snapshots(rows, wiring, plan=work, scaling=self.options.scaling, placement=place, keep=little)
        return _Forecast(work, snapshots, self._kernels, place).run(horizons, node_pe)

    def memory_bytes(self, wiring: Wiring, *, horizons: int = 1) -> int:
        """An upper estimate of what a forecast allocates on its device, besides the snapshots it reads; it needs no snapshots."""
        place = placement(self.device)
        vectors = 4 * self.options.hidden  # bytes
        stages = sum(stage.at_source is not None for stage in self._kernels.folded.edge_stages)
        # at the last convolution: x and B, the sums twice (those of units under way apart), and both ends of every stage
        neurons = wiring.neurons * vectors * (2 + 4 + 2 * stages)
        units = 2 * place.threads * (place.unit_bytes + 8 * place.sizes.bundle * vectors)
        return plan_bytes(wiring, place.sizes, graph=self.options.graph) + neurons + units + 4 * horizons * wiring.size


LITTLE: Final = 16_384
"""Edges: handing fewer to other threads takes longer than computing them, and reading them twice longer than keeping them."""

_FEATURES: Final = LruCache[Tensor](64 * 2**20, weigh=lambda features: features.nbytes)


def _features(wiring: Wiring, count: int, device: torch.device) -> Tensor:
    """A wiring's Laplacian features on the device, (neurons, count); cached there."""
    features = laplacian_features(wiring, count=count)
    if device.type == "cpu":
        return features
    return _FEATURES.get(f"{device}/{count}/{wiring.hash}", lambda: features.to(device))


class _Forecast:
    """One forecast under way."""

    def __init__(self, work: Plan, snapshots: Snapshots, kernels: Kernels, place: Placement) -> None:
        self._work, self._snapshots, self._kernels, self._place = work, snapshots, kernels, place
        self._folded: Folded = kernels.folded

    def run(self, horizons: Sequence[int], node_pe: Tensor | None) -> Tensor:
        if node_pe is None:
            return self._read_out([None] * len(self._folded.edge_stages), horizons)
        return self._read_out(self._converge(node_pe), horizons)

    def _converge(self, node_pe: Tensor) -> list[Ends | None]:
        """What the neurons contribute to every edge stage."""
        neurons = Neurons(self._folded, self._work, self._place, node_pe)
        ends, convolutions = list[Ends | None](), iter(self._folded.neuron_stages)
        for stage in self._folded.edge_stages:
            if stage.at_source is None:
                ends.append(None)
                continue
            convolution = next(convolutions)
            neurons.update(convolution, self._gather(convolution, ends, neurons.at_source(convolution)))
            ends.append(neurons.ends(stage))
        return ends

    def _gather(self, stage: NeuronStage, ends: Sequence[Ends | None], at_source: Tensor) -> Sums:
        """Sums over the edges into every neuron, added up unit by unit in their order."""

        def messages(unit: Unit) -> Sums:
            return self._kernels.messages(unit, self._snapshots.read(unit), stage, ends, at_source)

        parts = in_order(messages, self._work.units, threads=self._place.threads)
        if len(self._work.units) == 1:
            return next(parts)  # each neuron is a target, if only of its self loop
        hidden = at_source.shape[1]
        width = self._work.slots * self._snapshots.context if stage.level == 0 else hidden
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
        carrying = [unit for unit in self._work.units if unit.carries]
        readout = {slots: self._folded.rows(horizons, slots=slots) for slots in {unit.slots for unit in carrying}}

        def forecast(unit: Unit) -> None:
            weights = self._snapshots.read(unit)
            scatter(out, unit, self._kernels.forecasts(unit, weights, ends, readout[unit.slots], horizons=len(horizons)))

        run(forecast, carrying, threads=self._place.threads)
        self._snapshots.restore(out, residual=self._folded.options.residual)
        for left in self._work.uncovered:
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
