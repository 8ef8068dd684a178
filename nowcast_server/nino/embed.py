"""Where a run is in weight space, as the graph network sees it: its embeddings of the neurons, pooled to one vector. That does not
depend on how neurons happen to be numbered, by which weights of two runs that train alike lie far apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from nowcast_server.nino.checkpoint import Checkpoint, CheckpointError
from nowcast_server.nino.engine import StreamingEngine
from nowcast_server.nino.laplacian import Floats, NeuronClasses, TooManyClasses, laplacian_features
from protos.wiring import Wiring


class Embedder:
    """Embeds contexts of one network."""

    def __init__(self, checkpoint: Checkpoint, wiring: Wiring) -> None:
        options = checkpoint.options
        if not options.graph or options.layers < 2:
            raise CheckpointError("embeddings come from a graph network of at least two layers (nino); this checkpoint is another")
        self.context = options.context
        self._engine, self._wiring = StreamingEngine(checkpoint), wiring
        self._node_pe = _alike(laplacian_features(wiring, count=options.laplacian), wiring)
        self.nbytes = self._node_pe.nbytes + 4 * checkpoint.size  # kept for a network: its neurons' features, folded weights

    def embed(self, states: Sequence[Tensor] | Tensor) -> Tensor:
        """Mean embedding (hidden,) of the neurons for a context, `states` (context, n) raw weights, oldest first."""
        return self._engine.neurons(self._wiring, states, node_pe=self._node_pe).mean(0)


def _alike(features: Tensor, wiring: Wiring) -> Tensor:
    """Laplacian features (neurons, k), of neurons that no block tells apart their mean: else they would depend on the numbering."""
    try:
        sizes = torch.from_numpy(NeuronClasses.of(wiring).sizes)
    except TooManyClasses:
        return features  # all 0
    owner = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    sums = features.new_zeros(len(sizes), features.shape[1]).index_add_(0, owner, features)
    return (sums / sizes.unsqueeze(1))[owner]


@dataclass(frozen=True)
class Projection:
    """Principal components, to be kept: what is added to a map later does not move what is on it."""

    mean: Floats  # (d,)
    components: Floats  # (k, d), orthonormal, by falling variance; of each the largest entry is positive
    explained: Floats  # (k,) share of the variance

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
