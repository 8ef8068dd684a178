"""Laplacian features: where each neuron sits in its network, for any size of network, and always the same.

The features of a neuron are its entries in the eigenvectors 1..k, by rising eigenvalue, of the symmetrically normalised Laplacian
of the undirected, binary graph without self loops (Dwivedi et al., "Benchmarking graph neural networks", arXiv 2003.00982).

They are computed from the classes of alike neurons (see `classes.py`), not from the edges. An eigenvector's sign is arbitrary
and so is the basis of a repeated eigenvalue; both are settled by one rule: a feature is the projection of a fixed pseudo-random
vector onto the eigenspace, made orthogonal to the features before it. That depends on the eigenspace alone, not on the basis a
solver happens to return, and so on no machine. The eigenvector left out is always the trivial one, which a graph in several
pieces needs to have said.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from nowcast_server.interruption import interruption_point
from nowcast_server.nino.cache import LruCache
from nowcast_server.nino.classes import CLASSES_BYTES, MOST_CLASSES, Floats, Ints, NeuronClasses, TooManyClasses
from protos.wiring import Wiring

SAME: Final = 1e-8  # eigenvalues closer than this count as one repeated eigenvalue

_LOG: Final = logging.getLogger(__name__)

_CACHE: Final = LruCache[Tensor](64 * 2**20, weigh=lambda features: features.nbytes)


def laplacian_features(wiring: Wiring, *, count: int = 8, device: torch.device | None = None) -> Tensor:
    """The `count` Laplacian features of each neuron: (neurons, count) float32, zero where the graph has too few eigenvectors.

    All are zero in graphs that few networks have, whose neurons fall into more than `MOST_CLASSES` classes. Cached by the
    wiring's hash and the device (the CPU by default); not to be written to.
    """
    if device is None or device.type == "cpu":
        return _CACHE.get(f"{wiring.hash}/{count}", lambda: compute_features(wiring, count=count))
    return _CACHE.get(f"{wiring.hash}/{count}/{device}", lambda: laplacian_features(wiring, count=count).to(device))


def compute_features(wiring: Wiring, *, count: int) -> Tensor:
    """`laplacian_features`, not cached."""
    features = np.zeros((wiring.neurons, count), dtype=np.float32)
    try:
        classes = NeuronClasses.of(wiring)
    except TooManyClasses as error:
        _LOG.warning("wiring %s has no Laplacian features, all are 0: %s", wiring.hash, error)
        return torch.from_numpy(features)
    for index, vector in enumerate(_eigenvectors(classes, min(count + 1, wiring.neurons))):
        if index:
            features[:, index - 1] = vector
    return torch.from_numpy(features)


def features_bytes(wiring: Wiring, *, count: int) -> int:
    """An upper estimate of what computing them takes, without computing them."""
    cuts = wiring.neurons if any(block.diagonal for block in wiring.blocks) else 4 * len(wiring.blocks) + 1
    share = (min(wiring.neurons, cuts, MOST_CLASSES) / MOST_CLASSES) ** 2
    return int(CLASSES_BYTES * share) + 8 * (count + 2) * wiring.neurons


def _eigenvectors(classes: NeuronClasses, wanted: int) -> Iterator[Floats]:
    """The first eigenvectors (neurons,), orthonormal, by rising eigenvalue of the Laplacian."""
    found = 0
    for eigenspace in _eigenspaces(classes):
        basis: list[Floats] = []
        for index in range(found, min(wanted, found + eigenspace.dimension)):
            basis.append(_orthonormal(eigenspace.project(_start_vector(index, classes)), basis))
        yield from basis
        found += len(basis)
        if found == wanted:
            return


def _start_vector(index: int, classes: NeuronClasses) -> Floats:
    """The vector whose projection becomes eigenvector `index`: (neurons,)."""
    if index == 0 and classes.degrees.any():
        return np.sqrt(classes.degrees).repeat(classes.sizes)  # the trivial eigenvector itself
    # raw bits of a counter-based generator: the same in every version of numpy
    bits = np.random.Philox(key=index).random_raw(int(classes.sizes.sum()))
    return np.asarray(bits / 2.0**63 - 1.0)


def _orthonormal(vector: Floats, basis: list[Floats]) -> Floats:
    for _ in range(2):  # once more for what rounding left
        for other in basis:
            vector = vector - (other @ vector) * other
    return vector / np.linalg.norm(vector)


@dataclass(frozen=True)
class _Chain:
    """Eigenvectors that sum to zero within classes: `weights` over `members`, classes of one size, times any such vector."""

    value: float
    members: Ints
    weights: Floats


@dataclass(frozen=True)
class _Eigenspace:
    """One eigenvalue's space: `constant` (K, q) orthonormal columns on class-constant vectors, and `chains`."""

    classes: NeuronClasses
    constant: Floats
    chains: list[_Chain]

    @property
    def dimension(self) -> int:
        differences = (int(self.classes.sizes[chain.members[0]]) - 1 for chain in self.chains)
        return int(self.constant.shape[1]) + sum(differences)

    def project(self, vector: Floats) -> Floats:
        """The part of `vector` (neurons,) that lies in the eigenspace."""
        starts, sizes = self.classes.starts, self.classes.sizes
        sums = np.add.reduceat(vector, starts)
        out = (self.constant @ (self.constant.T @ (sums / np.sqrt(sizes))) / np.sqrt(sizes)).repeat(sizes)
        centred = vector - (sums / sizes).repeat(sizes) if self.chains else vector
        for chain in self.chains:
            index = starts[chain.members][:, None] + np.arange(sizes[chain.members[0]])  # (members, m)
            out[index] += np.outer(chain.weights, chain.weights @ centred[index])
        return np.asarray(out)


def _eigenspaces(classes: NeuronClasses) -> Iterator[_Eigenspace]:
    """Eigenspaces of the normalised adjacency by falling eigenvalue: by rising eigenvalue of the Laplacian."""
    interruption_point()
    values, vectors = np.linalg.eigh(classes.quotient)
    chains: list[_Chain] = []
    for members in _chained(classes):
        interruption_point()
        levels, weights = np.linalg.eigh(classes.differences[np.ix_(members, members)])
        chains += [_Chain(float(level), members, weight) for level, weight in zip(levels, weights.T, strict=True)]
    levels = np.concatenate((values, [chain.value for chain in chains]))
    while levels.size:
        least = levels.max() - SAME
        alike = [chain for chain in chains if chain.value >= least]
        yield _Eigenspace(classes, vectors[:, values >= least], alike)
        chains = [chain for chain in chains if chain.value < least]
        values, vectors, levels = values[values < least], vectors[:, values < least], levels[levels < least]


def _chained(classes: NeuronClasses) -> Iterator[Ints]:
    """Groups of classes that diagonals join, of those with several neurons: a single neuron has no differences."""
    left = set(np.flatnonzero(classes.sizes > 1).tolist())
    while left:
        group = [left.pop()]
        for member in group:  # grows meanwhile
            joined = left.intersection(np.flatnonzero(classes.differences[member]).tolist())
            left -= joined
            group += joined
        yield np.sort(group)
