"""Whether training goes along with pushes: as a whole, and layer by layer."""

import math
import re
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from protos.messages import MAX_LAYERS
from trainer_worker.push import dot, norm
from trainer_worker.weights.flat import Piece

LONGEST: Final = 80  # characters of a layer's name


def alignment(pushed: Tensor, before: Tensor, after: Tensor, pieces: Sequence[Piece]) -> Tensor:
    """Compare a push (n,) float32 with what training itself did over the same interval, between the snapshots (n,) `before` and
    `after`: the inner product of the two and the squares of their norms for each tensor, (pieces, 3) float64.
    """
    rows = []
    for piece in pieces:
        part = pushed[piece.start : piece.stop]
        own = after[piece.start : piece.stop].float() - before[piece.start : piece.stop].float() - part
        rows.append((dot(own, part), norm(part) ** 2, norm(own) ** 2))
    return torch.tensor(rows, dtype=torch.float64)


def coherence(aligned: Tensor) -> float | None:
    """Cosine between a push and what training itself did, over some rows of `alignment`; None if either is nothing."""
    product, pushed, own = aligned.sum(0).tolist()
    length = math.sqrt(pushed) * math.sqrt(own)
    return max(-1.0, min(1.0, product / length)) if length else None


def brake(coherence: float) -> float:
    """Share of the gain that is left where training takes pushes back: all of it at a mean coherence of 0, nothing at -0.4. Without
    it, the default gain breaks a run at three times its best learning rate (`bench/acceleration/results`).
    """
    return min(1.0, max(0.0, 1 + 2.5 * coherence))


def layers_of(names: Sequence[str]) -> list[str]:
    """The layer of each parameter, by its name. Of more than `MAX_LAYERS`, those that differ in numbers alone are taken together,
    `blocks.*.attention`, and then those that differ in the last parts of their names.
    """
    layers = [name.rpartition(".")[0] or name for name in names]
    if len(set(layers)) > MAX_LAYERS:
        layers = [re.sub(r"\d+", "*", layer) for layer in layers]
    while len(set(layers)) > MAX_LAYERS and any("." in layer for layer in layers):
        layers = [layer.rpartition(".")[0] or layer for layer in layers]
    found = list(dict.fromkeys(layers))
    kept = set(found if len(found) <= MAX_LAYERS else found[: MAX_LAYERS - 1])
    return [layer[-LONGEST:] if layer in kept else "others" for layer in layers]


class LayerCoherence:
    """Mean coherence of each layer over the pushes so far, for parameters of these names."""

    def __init__(self, names: Sequence[str]) -> None:
        self._rows: dict[str, list[int]] = {}
        for index, layer in enumerate(layers_of(names)):
            self._rows.setdefault(layer, []).append(index)
        self._sums: dict[str, tuple[float, int]] = {}

    def add(self, aligned: Tensor) -> None:
        """Add a push: (parameters, 3), as `alignment` gives it."""
        for layer, rows in self._rows.items():
            if (seen := coherence(aligned[rows])) is not None:
                total, count = self._sums.get(layer, (0.0, 0))
                self._sums[layer] = (total + seen, count + 1)

    def means(self) -> dict[str, float]:
        """By layer, in the network's order; without those that were never pushed."""
        sums = dict(self._sums)  # another thread may be adding
        return {layer: total / count for layer, (total, count) in sums.items()}
