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
from typing import Any, Final

import numpy as np
import torch
from scipy.linalg import LinAlgError, eigh
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh
from torch import Tensor

from nowcast_server.interruption import interruption_point
from nowcast_server.nino.cache import LruCache
from nowcast_server.nino.classes import MOST_PAIRS, PAIR_BYTES, Floats, Ints, NeuronClasses, TooManyPairs
from nowcast_server.nino.feature_files import kept
from protos.wiring import Wiring

DENSE: Final = 2000
"""Up to so many classes a matrix is diagonalised whole, in 1.4 s of one core; beyond, Lanczos finds the few eigenvectors needed."""

DENSEST: Final = 3000
"""Up to so many classes it is diagonalised whole, in 5 s and 220 MB, if Lanczos does not find them."""

MOST_CLASSES: Final = 20_000
"""Of a matrix that Lanczos is tried on, in 170 MB at most: no deep network has more, and more would not be done in `WORK`."""

WORK: Final = 2e10
"""Multiplications after which a graph is left without features, 20 s of one core or so. The slowest real network that was found, a
plain network of 3000 layers, takes 9e9; one long diagonal, whose features nobody needs, would take hours. Counted, not timed: the
same graph has the same features wherever they are computed."""

PER_CLASS: Final = 100
"""Multiplications of one step of Lanczos, for each class."""
PER_MATRIX: Final = 400_000
"""What cutting out a matrix takes, however small, as so many multiplications."""

SAME: Final = 1e-8
"""Eigenvalues closer than this count as one repeated eigenvalue."""

SPARE: Final = 16
"""Eigenvectors that one round of Lanczos finds beyond those needed."""

MOST: Final = 300
"""Eigenvectors after which Lanczos gives up completing a repeated eigenvalue."""

WORTH_KEEPING: Final = 20_000
"""Neurons from which on features are kept on disk: below, they are the work of milliseconds."""

_LOG: Final = logging.getLogger(__name__)

_CACHE: Final = LruCache[Tensor](8_000_000, weigh=Tensor.numel)


def laplacian_features(wiring: Wiring, *, count: int = 8) -> Tensor:
    """The `count` Laplacian features of each neuron: (neurons, count) float32, zero where the graph has too few eigenvectors.

    Zero too from an eigenvalue on that is repeated too often to be completed in a graph of more than `DENSEST` classes, and all of
    them in graphs that no network has, whose features would take minutes and gigabytes (`MOST_PAIRS`, `MOST_CLASSES`, `WORK`).

    Cached by the wiring's hash, those of large networks on disk too (`feature_files.py`); not to be written to.
    """
    key, shape = f"{wiring.hash}-{count}", (wiring.neurons, count)
    if wiring.neurons < WORTH_KEEPING:
        return _CACHE.get(key, lambda: compute_features(wiring, count=count))
    return _CACHE.get(key, lambda: kept(key, shape, lambda: compute_features(wiring, count=count)))


def compute_features(wiring: Wiring, *, count: int) -> Tensor:
    """`laplacian_features`, not cached."""
    try:
        return _compute(wiring, count)
    except (TooManyPairs, TooMuchWork) as error:
        _LOG.warning("wiring %s has no Laplacian features, all are 0: %s", wiring.hash, error)
        return torch.zeros(wiring.neurons, count)


def features_bytes(wiring: Wiring, *, count: int) -> int:
    """An upper estimate of what computing them takes, without computing them."""
    cuts = wiring.neurons if any(block.diagonal for block in wiring.blocks) else 4 * len(wiring.blocks) + 1
    classes = min(wiring.neurons, cuts, MOST_CLASSES)
    solver = max(3 * min(classes, DENSEST) ** 2, classes * (3 * MOST + 100) * (classes > DENSE))
    return 8 * (solver + (count + 2) * wiring.neurons) + PAIR_BYTES * min(MOST_PAIRS, classes**2)


class TooMuchWork(Exception):
    """The features would take too long."""


class _Work:
    """What one graph's features have taken, in multiplications."""

    def __init__(self) -> None:
        self._left = WORK

    def spend(self, multiplications: float) -> None:
        """Go on to something that takes so many; an interruption point.

        Raises:
            TooMuchWork: `WORK` is used up.
        """
        interruption_point()
        self._left -= multiplications
        if self._left < 0:
            raise TooMuchWork(f"they take more than {WORK:.0e} multiplications")


def _compute(wiring: Wiring, count: int) -> Tensor:
    classes = NeuronClasses.of(wiring)
    wanted = min(count + 1, wiring.neurons)
    found: list[Floats] = []
    for eigenspace in _eigenspaces(classes, wanted, _Work()):
        basis: list[Floats] = []
        for index in range(len(found), min(wanted, len(found) + eigenspace.dimension)):
            basis.append(_orthonormal(eigenspace.project(_start_vector(index, classes)), basis))
        found += basis
        if len(found) == wanted:
            break
    if len(found) < wanted:
        held = max(len(found) - 1, 0)
        _LOG.warning("wiring %s has %d of %d Laplacian features, the rest are 0: an eigenvalue repeats", wiring.hash, held, count)
    features = np.zeros((wiring.neurons, count), dtype=np.float32)
    for index, vector in enumerate(found[1:]):
        features[:, index] = vector
    return torch.from_numpy(features)


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
class _Spectrum:
    """Eigenpairs of a matrix, `values` (m,) and `vectors` (size, m): all whose eigenvalues are above `floor`."""

    values: Floats
    vectors: Floats
    floor: float = -np.inf


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
            size = sizes[chain.members[0]]
            index = starts[chain.members][:, None] + np.arange(size)  # (members, size)
            out[index] += np.outer(chain.weights, chain.weights @ centred[index])
        return np.asarray(out)


def _eigenspaces(classes: NeuronClasses, wanted: int, work: _Work) -> Iterator[_Eigenspace]:
    """Eigenspaces of the normalised adjacency by falling eigenvalue: by rising eigenvalue of the Laplacian.

    They end where one could not be completed.
    """
    quotient = _largest(classes.quotient, wanted, work)
    values, vectors, floor = quotient.values, quotient.vectors, quotient.floor
    chains: list[_Chain] = []
    for members, spectrum in _differences(classes, wanted, work):
        floor = max(floor, spectrum.floor)
        pairs = zip(spectrum.values, spectrum.vectors.T, strict=True)
        chains += [_Chain(float(value), members, vector) for value, vector in pairs]
    levels = np.concatenate((values, [chain.value for chain in chains]))
    while levels.size and (top := levels.max()) > floor:
        yield _Eigenspace(
            classes, vectors[:, values >= top - SAME], [chain for chain in chains if top - SAME <= chain.value <= top]
        )
        values, vectors = values[values < top - SAME], vectors[:, values < top - SAME]
        chains = [chain for chain in chains if chain.value < top - SAME]
        levels = levels[levels < top - SAME]


def _differences(classes: NeuronClasses, wanted: int, work: _Work) -> Iterator[tuple[Ints, _Spectrum]]:
    """Classes that diagonals join, and the eigenpairs on their vectors that sum to zero within classes."""
    several = np.flatnonzero(classes.sizes > 1)  # a single neuron has no differences
    differences = classes.differences[several][:, several]
    count, label = connected_components(differences, directed=False)
    order = np.argsort(label, kind="stable")
    for members in np.split(order, np.cumsum(np.bincount(label, minlength=count))[:-1]) if count else ():
        yield several[members], _largest(differences[members][:, members], wanted, work)


def _largest(matrix: csr_array[Any], wanted: int, work: _Work) -> _Spectrum:
    """The eigenpairs of the `wanted` largest eigenvalues or more; fewer if a repeated one is not to be had."""
    size = matrix.shape[0]
    work.spend(PER_MATRIX)
    if size == 1:
        return _Spectrum(matrix.toarray()[0], np.ones((1, 1)))
    if size > MOST_CLASSES:
        raise TooMuchWork(f"the neurons fall into {size} classes, more than {MOST_CLASSES}")
    if size > DENSE:
        found = _lanczos(matrix, wanted, work)
        if len(found.values) >= wanted or size > DENSEST:
            return found
    work.spend(size**3 / 4)
    return _Spectrum(*_diagonalised(matrix.toarray()))


def _diagonalised(matrix: Floats) -> tuple[Floats, Floats]:
    """All eigenvalues and eigenvectors of a symmetric matrix."""
    try:
        values, vectors = eigh(matrix)
    except LinAlgError:  # LAPACK's default gives up on some matrices of repeated eigenvalues; this one takes twice the memory
        values, vectors = eigh(matrix, driver="evd")
    return values, vectors


def _lanczos(matrix: csr_array[Any], wanted: int, work: _Work) -> _Spectrum:
    """`_largest` for a large matrix.

    Lanczos may overlook copies of a repeated eigenvalue. So what was found is moved to the far end of the spectrum and the search
    repeated, until nothing turns up that belongs among the largest.
    """
    size = matrix.shape[0]
    start = np.random.Philox(key=size).random_raw(size) / 2.0**63 - 1.0
    values, vectors = np.empty(0), np.empty((size, 0))
    while True:

        def deflated(x: Floats, values: Floats = values, vectors: Floats = vectors) -> Floats:
            work.spend(matrix.nnz + PER_CLASS * size + 2 * vectors.size)
            return np.asarray(matrix @ x - vectors @ ((values + 1.0) * (vectors.T @ x)))  # eigenvalues lie in -1..1

        operator = LinearOperator(matrix.shape, matvec=deflated, dtype=np.float64)
        try:
            # the generator is for new vectors when those from `start` are used up: always the same ones
            more, found = eigsh(operator, k=wanted + SPARE, which="LA", v0=start, rng=np.random.Generator(np.random.PCG64(size)))
        except ArpackError as error:  # eigenvalues repeated hundreds of times
            _LOG.info("Lanczos found no eigenvectors of a matrix of %d classes: %s", size, error)
            return _Spectrum(np.empty(0), np.empty((size, 0)), np.inf)
        floor = float(more.max()) + SAME
        complete = values > floor
        if complete.sum() >= wanted or len(values) >= MOST:
            return _Spectrum(values[complete], vectors[:, complete], floor)
        vectors, _ = np.linalg.qr(np.hstack((vectors, found)))
        values = np.einsum("nk,nk->k", vectors, matrix @ vectors)
