"""The reference engines: forecasts through the plain PyTorch models, with every edge in memory at once."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import copy
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from nowcast_server.nino.cache import LruCache
from nowcast_server.nino.checkpoint import Checkpoint
from nowcast_server.nino.graph import SELF_LOOP_FEATURE, STRUCTURE_FEATURE, to_graph
from nowcast_server.nino.laplacian import laplacian_features
from nowcast_server.nino.precision import Precision
from nowcast_server.nino.standardise import Standardisation
from nowcast_server.nino.wnn import Wnn
from protos.errors import BadRequest
from protos.wiring import EdgeType, Wiring

if TYPE_CHECKING:
    from torch_geometric.data import Data

    from nowcast_server.nino.model import NiNo

CACHED_EDGES: Final = 4_000_000
"""Graphs are kept until together they have this many edges, of about 60 bytes each."""

_GRAPHS: Final = LruCache["Data"](CACHED_EDGES, weigh=lambda graph: int(graph.edge_index.shape[1]))


class ReferenceEngine(ABC):
    """Forecasts exactly as the model files say; safe for several threads at once.

    Args:
        checkpoint: the weights.
        device: where to compute.
        precision: `float32` alone.

    Raises:
        BadRequest: another precision.
    """

    def __init__(self, checkpoint: Checkpoint, *, device: str | torch.device = "cpu", precision: Precision = "float32") -> None:
        if precision != "float32":
            raise BadRequest(f"the reference engine computes in float32, not {precision}", field="precision")
        self.options = checkpoint.options
        self.device = torch.device(device)

    @torch.no_grad()
    def forecast(
        self, wiring: Wiring, states: Tensor | Sequence[Tensor], *, horizons: tuple[int, ...], node_pe: Tensor | None
    ) -> Tensor:
        """Forecast `states`, (context, n) or (n,) each, raw and of any floating dtype: (len(horizons), n) float32 on the device.

        Arguments are trusted: a forecaster has checked them. `node_pe` (neurons, laplacian) replaces the wiring's own
        Laplacian features. Weights in no block keep their last value.
        """
        context = torch.stack(tuple(states)).to(self.device, torch.float32)
        graph = copy(_GRAPHS.get(wiring.hash, lambda: to_graph(wiring))).to(self.device)
        sizes = [parameter.size for parameter in wiring.parameters]
        standardisation = Standardisation.fit(context, sizes, method=self.options.scaling)
        z = self.predict(wiring, graph, standardisation.apply(context), horizons, node_pe)
        return torch.where(graph.param_edge >= 0, standardisation.invert(z), context[-1])

    def memory_bytes(self, wiring: Wiring, *, horizons: int = 1) -> int:
        """What a forecast takes besides the snapshots it reads, about: some ten vectors for every edge."""
        return 40 * self.options.hidden * wiring.edges + 4 * horizons * wiring.size

    @abstractmethod
    def predict(self, wiring: Wiring, graph: "Data", z: Tensor, horizons: tuple[int, ...], node_pe: Tensor | None) -> Tensor:
        """Forecast standardised snapshots `z` (context, n): (horizons, n), with any value where no block holds the weight."""


class NinoReference(ReferenceEngine):
    """NiNo through PyTorch Geometric."""

    def __init__(self, checkpoint: Checkpoint, *, device: str | torch.device = "cpu", precision: Precision = "float32") -> None:
        super().__init__(checkpoint, device=device, precision=precision)
        self._model = build_nino(checkpoint).to(self.device)

    def predict(self, wiring: Wiring, graph: "Data", z: Tensor, horizons: tuple[int, ...], node_pe: Tensor | None) -> Tensor:
        if node_pe is None:
            node_pe = laplacian_features(wiring, count=self.options.laplacian)
        out: Tensor = self._model(
            node_pe.to(self.device, torch.float32),
            graph.edge_index,
            graph.edge_type,
            edge_features(graph, z, slots=wiring.slots),
            word=graph.word,
            horizons=horizons,
        )
        return out[graph.param_edge, graph.param_slot].T


class WnnReference(ReferenceEngine):
    """WNN and WNN+ in plain PyTorch."""

    def __init__(self, checkpoint: Checkpoint, *, device: str | torch.device = "cpu", precision: Precision = "float32") -> None:
        super().__init__(checkpoint, device=device, precision=precision)
        self._model = build_wnn(checkpoint).to(self.device)

    def predict(self, wiring: Wiring, graph: "Data", z: Tensor, horizons: tuple[int, ...], node_pe: Tensor | None) -> Tensor:
        del wiring, node_pe  # a parameter is forecast from its own past alone
        out: Tensor = self._model(z.T, graph.edge_type[graph.param_edge], horizons=horizons)
        return out.T


def edge_features(graph: "Data", z: Tensor, *, slots: int) -> Tensor:
    """Lay standardised parameters `z` (context, n) out on the graph's edges: (E, slots, context).

    Structural edges and self loops carry their constants in slot 0; slots without a weight are zero.
    """
    features = z.new_zeros(graph.edge_index.shape[1], slots, z.shape[0])
    features[graph.edge_type >= EdgeType.RESIDUAL, 0] = STRUCTURE_FEATURE
    features[graph.edge_type == EdgeType.SELF_LOOP, 0] = SELF_LOOP_FEATURE
    covered = graph.param_edge >= 0
    features[graph.param_edge[covered], graph.param_slot[covered]] = z.T[covered]
    return features


def build_nino(checkpoint: Checkpoint) -> "NiNo":
    """The PyTorch Geometric model of a checkpoint, in evaluation mode on the CPU, with weights of its own."""
    from nowcast_server.nino.model import NiNo

    model = NiNo(checkpoint.options)
    model.load_state_dict(dict(checkpoint.tensors))
    return model.eval()


def build_wnn(checkpoint: Checkpoint) -> Wnn:
    """The WNN of a checkpoint, in evaluation mode on the CPU, with weights of its own."""
    model = Wnn(checkpoint.options)
    model.load_state_dict(dict(checkpoint.tensors))
    return model.eval()
