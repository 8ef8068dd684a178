"""Laplacian features: where each neuron sits in its network, for any size of network, and always the same.

The features of a neuron are its entries in the eigenvectors 1..k, by rising eigenvalue, of the symmetrically normalised Laplacian
of the undirected, binary graph without self loops (Dwivedi et al., "Benchmarking graph neural networks", arXiv 2003.00982).

A neural graph is made of complete bipartite rectangles and of diagonals. Cut the neurons wherever a block begins or ends, carry the
cuts along the diagonals, and what is left between two cuts is a class: its m neurons have the same degree, and between two classes
lie all edges, none, or a matching. The normalised adjacency of N neurons then falls apart exactly into

- the **quotient**, K x K for K classes, acting on vectors that are constant on every class;
- the **differences**: vectors that sum to zero within every class. A rectangle maps them to zero, a matching hands them from one
  class to the next, so they see only a K x K matrix too, with every eigenvalue m - 1 times.

K is about ten a layer, whatever the width, so that the spectrum of a graph with 10^9 edges is the work of seconds.

An eigenvector's sign is arbitrary and so is the basis of a repeated eigenvalue; both are settled by one rule: a feature is the
projection of a fixed pseudo-random vector onto the eigenspace, made orthogonal to the features before it. That depends on the
eigenspace alone, not on the basis a solver happens to return, and so on no machine. The eigenvector left out is always the trivial
one, which a graph in several pieces needs to have said.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nowcast_server.interruption import interruption_point
from nowcast_server.nino.cache import LruCache
from protos.wiring import Block, Wiring

SAME: Final = 1e-8  # eigenvalues closer than this count as one repeated eigenvalue
SWEEPS: Final = 50  # after so many each neuron on a diagonal is a class of its own: right too, and no chain can take longer
CARRIED: Final = 500_000_000  # neurons of diagonals that all sweeps together may pass, a second's work; `BLOCK` more for each block
BLOCK: Final = 1000
MOST_CLASSES: Final = 2000  # more take over 4 s of one core, and `CLASSES_BYTES`; GPT-2 of 12 layers has 600, ResNet-152 460
CLASSES_BYTES: Final = 7 * 8 * MOST_CLASSES**2
MOST_PAIRS: Final = 500_000_000  # pairs of classes that blocks may join, counted block by block: a second's work

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_LOG: Final = logging.getLogger(__name__)
_CACHE: Final = LruCache[Tensor](64 * 2**20, weigh=lambda features: features.nbytes)


class TooManyClasses(Exception):
    """Blocks cut the neurons so small that nothing is won by classes."""


@dataclass(frozen=True)
class NeuronClasses:
    """The classes of a wiring and the two matrices; K classes, in the order of their neurons."""

    starts: Ints  # (K,) the first neuron of each class
    sizes: Ints  # (K,) m, how many neurons it has
    degrees: Floats  # (K,) how many other neurons each of its neurons is joined to
    quotient: Floats  # (K, K) symmetric, the normalised adjacency on class-constant vectors
    differences: Floats  # (K, K) symmetric, the normalised adjacency on vectors that sum to zero within classes

    @classmethod
    def of(cls, wiring: Wiring) -> "NeuronClasses":
        """The classes of a wiring; TooManyClasses beyond `MOST_CLASSES`, or if blocks join more than `MOST_PAIRS` of them."""
        cuts = np.flatnonzero(_cuts(wiring))
        starts, sizes = cuts[:-1], np.diff(cuts)
        if len(sizes) > MOST_CLASSES:
            raise TooManyClasses(f"its blocks cut the neurons into {len(sizes)} classes, more than {MOST_CLASSES}")
        dense, matched = _joined(wiring, cuts)
        within = dense.diagonal().copy()
        matched *= 1 - dense  # a rectangle holds its diagonal
        np.fill_diagonal(matched, 0)  # self loops
        degrees = dense @ sizes - within + matched.sum(axis=1)
        inverse = np.divide(1.0, np.sqrt(degrees), out=np.zeros(len(sizes)), where=degrees > 0)
        scale = inverse[:, None] * inverse
        differences = (matched - np.diag(within)) * scale
        quotient = dense * np.sqrt(sizes) * np.sqrt(sizes)[:, None] * scale + differences
        return cls(starts, sizes, degrees, quotient, differences)


def _cuts(wiring: Wiring) -> NDArray[np.bool_]:
    """Where classes begin, and the end: (neurons + 1,)."""
    cuts = np.zeros(wiring.neurons + 1, dtype=np.bool_)
    cuts[[0, -1]] = True
    for block in wiring.blocks:
        cuts[[block.source, block.source + block.sources, block.target, block.target + block.targets]] = True
    diagonals = [block for block in wiring.blocks if block.diagonal]
    sweep = 2 * sum(BLOCK + block.sources for block in diagonals)
    for _ in range(min(SWEEPS, 1 + CARRIED // max(1, sweep))):
        interruption_point()
        # forward and backward in turn, so that a cut travels along a whole chain of residuals in one sweep
        if not any([_carry(cuts, diagonals), _carry(cuts, diagonals[::-1])]):
            return cuts
    for block in diagonals:
        cuts[block.source : block.source + block.sources] = cuts[block.target : block.target + block.targets] = True
    return cuts


def _carry(cuts: NDArray[np.bool_], diagonals: Sequence[Block]) -> bool:
    before = int(cuts.sum())
    for block in diagonals:
        source = cuts[block.source : block.source + block.sources + 1]
        target = cuts[block.target : block.target + block.targets + 1]
        source |= target
        target |= source
    return int(cuts.sum()) > before


def _joined(wiring: Wiring, cuts: Ints) -> tuple[Floats, Floats]:
    """Two symmetric (K, K), 1 where a dense block joins two classes, and where a diagonal does."""
    dense, matched = np.zeros((2, len(cuts) - 1, len(cuts) - 1))
    pairs = 0
    for block in wiring.blocks:
        source, source_end = np.searchsorted(cuts, [block.source, block.source + block.sources])
        target, target_end = np.searchsorted(cuts, [block.target, block.target + block.targets])
        pairs += 1000 + (source_end - source) * (1 if block.diagonal else target_end - target)
        if pairs > MOST_PAIRS:
            raise TooManyClasses(f"its blocks join more than {MOST_PAIRS} pairs of classes")
        if block.diagonal:
            index = np.arange(source, source_end), np.arange(target, target_end)
            matched[index] = matched[index[::-1]] = 1
        else:
            dense[source:source_end, target:target_end] = dense[target:target_end, source:source_end] = 1
    return dense, matched


def laplacian_features(wiring: Wiring, *, count: int = 8, device: torch.device | None = None) -> Tensor:
    """The `count` Laplacian features of each neuron: (neurons, count) float32, zero where the graph has too few eigenvectors. All
    are zero in graphs that few networks have, whose neurons fall into more than `MOST_CLASSES` classes. Cached by the wiring's hash
    and the device (the CPU by default); not to be written to.
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
