"""Where a run is in weight space, as the graph network sees it: its embeddings of neurons and edges, pooled to vectors.

A snapshot's weights depend on how neurons happen to be numbered, so two runs of one network that differ in their seed lie far
apart however alike they train. Pooled embeddings of the graph network do not depend on the numbering.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nowcast_server.nino.checkpoint import Checkpoint
from nowcast_server.nino.classes import NeuronClasses
from nowcast_server.nino.graph import to_graph
from nowcast_server.nino.laplacian import laplacian_features
from nowcast_server.nino.options import CheckpointError
from nowcast_server.nino.reference import build_nino, edge_features
from nowcast_server.nino.standardise import Standardisation
from protos.wiring import Wiring

Floats = npt.NDArray[np.float64]


class Embedder:
    """Embeds contexts of one network.

    Args:
        checkpoint: of a graph network.
        wiring: of the network that trains. All its edges are in memory at once.

    Raises:
        CheckpointError: the checkpoint is of no graph network.
    """

    def __init__(self, checkpoint: Checkpoint, wiring: Wiring) -> None:
        if not checkpoint.options.graph:
            raise CheckpointError("embeddings come from a graph network (nino); this checkpoint is a WNN")
        self.context = checkpoint.options.context
        self._options, self._wiring = checkpoint.options, wiring
        self._model = build_nino(checkpoint)
        self._graph = to_graph(wiring)
        self._node_pe = _alike(laplacian_features(wiring, count=self._options.laplacian).float(), wiring)
        # which parameter an edge belongs to; one more for those without weights
        owner = torch.full((self._graph.edge_index.shape[1],), len(wiring.parameters))
        for index, parameter in enumerate(wiring.parameters):
            edges = self._graph.param_edge[wiring.offsets[index] : wiring.offsets[index] + parameter.size]
            owner[edges[edges >= 0]] = index
        self._owner = owner

    @torch.no_grad()
    def embed(self, states: Sequence[Tensor] | Tensor) -> Tensor:
        """Mean embedding of the edges of each parameter, of the edges without weights, and of the neurons.

        Args:
            states: (context, n) raw weights, oldest first.

        Returns:
            (parameters + 2, hidden) float32.
        """
        context = torch.stack(tuple(states)).float()
        sizes = [parameter.size for parameter in self._wiring.parameters]
        z = Standardisation.fit(context, sizes, method=self._options.scaling).apply(context)
        neurons, edges = self._model(
            self._node_pe,
            self._graph.edge_index,
            self._graph.edge_type,
            edge_features(self._graph, z, slots=self._wiring.slots),
            word=self._graph.word,
            return_embedding=True,
        )
        pooled = _means(edges, self._owner, count=len(sizes) + 1)
        return torch.cat([pooled, neurons.mean(0, keepdim=True)])


def _alike(features: Tensor, wiring: Wiring) -> Tensor:
    """Laplacian features (neurons, k) with those of neurons that no block tells apart replaced by their mean.

    Features tell alike neurons apart by their number, which a forecast needs and a vector that shall not depend on it must not see.
    """
    sizes = torch.from_numpy(NeuronClasses.of(wiring).sizes)
    owner = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    return _means(features, owner, count=len(sizes))[owner]


def _means(values: Tensor, owner: Tensor, *, count: int) -> Tensor:
    """Mean of the rows (n, k) of each owner: (count, k), 0 of those that own none."""
    sums = values.new_zeros(count, values.shape[1]).index_add_(0, owner, values)
    return sums / torch.bincount(owner, minlength=count).clamp_min(1).unsqueeze(1)


@dataclass(frozen=True)
class Projection:
    """Principal components, to be kept: what is added to a map later does not move what is on it.

    Args:
        mean: (d,).
        components: (k, d), orthonormal, by falling variance; of each the largest entry is positive.
        explained: (k,) share of the variance.
    """

    mean: Floats
    components: Floats
    explained: Floats

    @classmethod
    def fit(cls, vectors: Floats, *, count: int = 2) -> Self:
        """Fit to `vectors` (m, d)."""
        mean = vectors.mean(0)
        _, sizes, directions = np.linalg.svd(vectors - mean, full_matrices=False)
        components = directions[:count]
        largest = np.abs(components).argmax(1)
        components = components * np.sign(components[np.arange(len(components)), largest])[:, None]
        variance = sizes**2
        return cls(mean, components, variance[:count] / max(float(variance.sum()), 1e-30))

    def apply(self, vectors: Floats) -> Floats:
        """Project `vectors` (m, d): (m, k)."""
        projected: Floats = (vectors - self.mean) @ self.components.T
        return projected
