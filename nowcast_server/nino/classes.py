"""Classes of neurons that no block tells apart, and the small matrices that hold the whole graph's spectrum.

A neural graph is made of complete bipartite rectangles and of diagonals. Cut the neurons wherever a block begins or ends, carry the
cuts along the diagonals, and what is left between two cuts is a class: its m neurons have the same degree, and between two classes
lie all edges, none, or a matching. The normalised adjacency of N neurons then falls apart exactly into

- the **quotient**, K x K for K classes, acting on vectors that are constant on every class;
- the **differences**: vectors that sum to zero within every class. A rectangle maps them to zero, a matching hands them from one
  class to the next, so they see only a K x K matrix too, with every eigenvalue m - 1 times.

K is about ten a layer, whatever the width, so that the spectrum of a graph with 10^9 edges is the work of seconds.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from nowcast_server.interruption import interruption_point
from protos.wiring import Block, Wiring

SWEEPS: Final = 50
"""After so many sweeps each neuron on a diagonal is a class of its own: right too, and no chain of diagonals can take longer."""

CARRIED: Final = 500_000_000
"""Neurons of diagonals that all sweeps together may pass, a second's work; `BLOCK` more for each block."""
BLOCK: Final = 1000

MOST_PAIRS: Final = 1_000_000
"""Pairs of classes that blocks may join; the largest networks have some ten thousand."""
PAIR_BYTES: Final = 200
"""Of such a pair, about, while the matrices are made."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class TooManyPairs(Exception):
    """Blocks cut the neurons so small that nothing is won by classes."""


@dataclass(frozen=True)
class NeuronClasses:
    """The classes of a wiring and the two matrices; K classes, in the order of their neurons.

    Args:
        starts: (K,) the first neuron of each class.
        sizes: (K,) m, how many neurons it has.
        degrees: (K,) how many other neurons each of its neurons is joined to.
        quotient: (K, K) symmetric, the normalised adjacency on class-constant vectors.
        differences: (K, K) symmetric, the normalised adjacency on vectors that sum to zero within classes.
    """

    starts: Ints
    sizes: Ints
    degrees: Floats
    quotient: csr_array[Any]
    differences: csr_array[Any]

    @classmethod
    def of(cls, wiring: Wiring) -> "NeuronClasses":
        """The classes of a wiring.

        Raises:
            TooManyPairs: more than `MOST_PAIRS` of them are joined.
        """
        cuts = np.flatnonzero(_cuts(wiring))
        _check_pairs(wiring, cuts)
        starts, sizes = cuts[:-1], np.diff(cuts)
        dense = _joined((block for block in wiring.blocks if not block.diagonal), cuts)
        matched = _joined((block for block in wiring.blocks if block.diagonal), cuts)
        matched = matched - matched.multiply(dense)  # a rectangle holds its diagonal
        within = dense.diagonal()
        matched.setdiag(0)  # self loops
        matched.eliminate_zeros()
        degrees = dense @ sizes - within + matched.sum(axis=1)
        inverse = np.divide(1.0, np.sqrt(degrees), out=np.zeros(len(sizes)), where=degrees > 0)
        roots = _diagonal(np.sqrt(sizes))
        normalise = _diagonal(inverse)
        quotient = normalise @ (roots @ dense @ roots - _diagonal(within) + matched) @ normalise
        differences = normalise @ (matched - _diagonal(within)) @ normalise
        return cls(starts, sizes, degrees, csr_array(quotient), csr_array(differences))


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


def _check_pairs(wiring: Wiring, cuts: Ints) -> None:
    pairs = 0
    for block in wiring.blocks:
        sources = _count(cuts, block.source, block.sources)
        pairs += sources if block.diagonal else sources * _count(cuts, block.target, block.targets)
    if pairs > MOST_PAIRS:
        raise TooManyPairs(f"its blocks join {pairs} pairs of classes of neurons, more than {MOST_PAIRS}")


def _joined(blocks: Iterator[Block], cuts: Ints) -> csr_array[Any]:
    """(K, K) symmetric, 1 where a block joins two classes."""
    rows, columns = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    for block in blocks:
        sources = _classes(cuts, block.source, block.sources)
        targets = _classes(cuts, block.target, block.targets)
        rows.append(sources if block.diagonal else sources.repeat(len(targets)))
        columns.append(targets if block.diagonal else np.tile(targets, len(sources)))
    row, column = np.concatenate(rows), np.concatenate(columns)
    one = np.ones(2 * len(row))
    size = len(cuts) - 1
    joined = csr_array((one, (np.concatenate((row, column)), np.concatenate((column, row)))), shape=(size, size))
    joined.data[:] = 1.0  # parallel blocks are one edge
    return joined


def _classes(cuts: Ints, start: int, count: int) -> Ints:
    first, last = np.searchsorted(cuts, [start, start + count])
    return np.arange(first, last)


def _count(cuts: Ints, start: int, count: int) -> int:
    first, last = np.searchsorted(cuts, [start, start + count])
    return int(last - first)


def _diagonal(values: Any) -> csr_array[Any]:
    index = np.arange(len(values))
    return csr_array((np.asarray(values, dtype=np.float64), (index, index)), shape=(len(values), len(values)))
