"""Forecasts through the plain models, with every edge in memory at once: what the streaming engine must equal."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Self, cast

import torch
from torch import Tensor
from torch_geometric.data import Data

from nowcast_server.nino.checkpoint import EPSILON, Checkpoint
from nowcast_server.nino.engine.bundles import SELF_LOOP_FEATURE, STRUCTURE_FEATURE, block_edges, block_positions, word_positions
from nowcast_server.nino.laplacian import laplacian_features
from protos.wiring import STRUCTURE, EdgeType, Wiring
from trainer_worker.metatrain.model import NiNo, build


@dataclass(frozen=True, slots=True)
class Standardisation:
    r"""An affine map of each parameter, :math:`z = (w - m) / (s + \epsilon)`, fitted to a context.

    m and s are the mean and the unbiased standard deviation over the parameter's whole tensor *and* its c snapshots together.

    Args:
        mean: (n,) m of each parameter.
        scale: (n,) s of each parameter.
    """

    mean: Tensor
    scale: Tensor

    @classmethod
    def fit(cls, states: Tensor, sizes: Sequence[int]) -> Self:
        """Fit to `states` (context, n), whose columns are tensors of the given `sizes`."""
        # transposed: pairwise summation then adds up in the order of the published code, which keeps rounding alike
        fits = [torch.std_mean(part.T.contiguous()) for part in torch.split(states, list(sizes), dim=1) if part.numel()]
        repeats = torch.tensor([size for size in sizes if size], device=states.device)
        scale, mean = torch.stack([torch.stack(fit) for fit in fits], dim=1)
        return cls(mean.repeat_interleave(repeats), scale.repeat_interleave(repeats))

    def apply(self, states: Tensor) -> Tensor:
        """Standardise (..., n)."""
        return (states - self.mean) / (self.scale + EPSILON)

    def invert(self, standardised: Tensor) -> Tensor:
        """Bring (..., n) back to the parameters' own scale."""
        return standardised * self.scale + self.mean


def to_graph(wiring: Wiring) -> Data:
    """Materialise the graph of `wiring`: its E edges block by block, then one self loop for each of the N neurons.

    Within a block edges run source by source; parallel edges stay separate.

    Returns:
        For n parameters,

        - `edge_index` (2, E) int64: source and target neuron of each edge,
        - `edge_type` (E,) int64: its `EdgeType`,
        - `param_edge`, `param_slot` (n,) int64: the edge and the slot each parameter sits in; -1 for weights in no block,
        - `word` (N,) int64: 1 + position of the neurons that stand for words, 0 for all others,
        - `num_nodes` N.
    """
    edge_index = torch.empty(2, wiring.edges, dtype=torch.int64)
    edge_type = torch.full((wiring.edges,), int(EdgeType.SELF_LOOP), dtype=torch.int64)
    param_edge = torch.full((wiring.size,), -1, dtype=torch.int64)
    param_slot = torch.full((wiring.size,), -1, dtype=torch.int64)
    start = 0
    for block in wiring.blocks:
        rows = slice(start, start + block.edges)
        edge_index[:, rows] = block_edges(block)
        edge_type[rows] = block.edge_type
        if block.parameter != STRUCTURE:
            positions = wiring.offsets[block.parameter] + block_positions(block)  # (edges, slots)
            param_edge[positions] = torch.arange(start, start + block.edges)[:, None]
            param_slot[positions] = torch.arange(block.slots)
        start += block.edges
    edge_index[:, start:] = torch.arange(wiring.neurons)
    return Data(
        edge_index=edge_index,
        edge_type=edge_type,
        param_edge=param_edge,
        param_slot=param_slot,
        word=word_positions(wiring),
        num_nodes=wiring.neurons,
    )


def edge_features(graph: Data, z: Tensor, *, slots: int) -> Tensor:
    """Lay standardised parameters `z` (context, n) out on the graph's edges: (E, slots, context).

    Structural edges and self loops carry their constants in slot 0; slots without a weight are zero.
    """
    features = z.new_zeros(graph.edge_index.shape[1], slots, z.shape[0])
    features[graph.edge_type >= EdgeType.RESIDUAL, 0] = STRUCTURE_FEATURE
    features[graph.edge_type == EdgeType.SELF_LOOP, 0] = SELF_LOOP_FEATURE
    covered = graph.param_edge >= 0
    features[graph.param_edge[covered], graph.param_slot[covered]] = z.T[covered]
    return features


@lru_cache(maxsize=1)
def _graph(wiring: Wiring, device: torch.device) -> Data:
    return to_graph(wiring).to(device)


class Reference:
    """Forecasts exactly as the model files say.

    Args:
        checkpoint: the weights.
        device: where.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device | None = None) -> None:
        self.model = build(checkpoint).to(device)

    @torch.no_grad()
    def forecast(
        self, wiring: Wiring, states: Tensor | Sequence[Tensor], *, horizons: tuple[int, ...], node_pe: Tensor | None = None
    ) -> Tensor:
        """Forecast `states`, (context, n) or (n,) each, raw and of any floating dtype: (len(horizons), n) float32.

        `node_pe` (neurons, laplacian) replaces the wiring's own Laplacian features. Weights in no block keep their last value.
        """
        context = torch.stack(tuple(states)).float()
        graph = _graph(wiring, context.device)
        standardisation = Standardisation.fit(context, [parameter.size for parameter in wiring.parameters])
        z = standardisation.apply(context)
        if isinstance(self.model, NiNo):
            edges = self.model(*self.inputs(wiring, graph, z, node_pe), word=graph.word, horizons=horizons)
            forecasts = edges[graph.param_edge, graph.param_slot]
        else:
            forecasts = self.model(z.T, graph.edge_type[graph.param_edge], horizons=horizons)
        return torch.where(graph.param_edge >= 0, standardisation.invert(cast("Tensor", forecasts.T)), context[-1])

    def inputs(self, wiring: Wiring, graph: Data, z: Tensor, node_pe: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the graph network takes."""
        if node_pe is None:
            node_pe = laplacian_features(wiring, count=self.model.options.laplacian)
        return node_pe.to(z), graph.edge_index, graph.edge_type, edge_features(graph, z, slots=wiring.slots)
