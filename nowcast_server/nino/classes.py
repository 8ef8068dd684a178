"""Classes of neurons that no block tells apart, and the small matrices that hold the whole graph's spectrum.

A neural graph is made of complete bipartite rectangles and of diagonals. Cut the neurons wherever a block begins or ends, carry the
cuts along the diagonals, and what is left between two cuts is a class: its m neurons have the same degree, and between two classes
lie all edges, none, or a matching. The normalised adjacency of N neurons then falls apart exactly into

- the **quotient**, K x K for K classes, acting on vectors that are constant on every class;
- the **differences**: vectors that sum to zero within every class. A rectangle maps them to zero, a matching hands them from one
  class to the next, so they see only a K x K matrix too, with every eigenvalue m - 1 times.

K is about ten a layer, whatever the width, so that the spectrum of a graph with 10^9 edges is the work of seconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from nowcast_server.interruption import interruption_point
from protos.wiring import Block, Wiring

SWEEPS: Final = 50
"""After so many sweeps each neuron on a diagonal is a class of its own: right too, and no chain of diagonals can take longer."""

CARRIED: Final = 500_000_000  # neurons of diagonals that all sweeps together may pass, a second's work; `BLOCK` more for each block
BLOCK: Final = 1000

MOST_CLASSES: Final = 2000
"""Beyond, a spectrum takes more than 4 s of one core and `CLASSES_BYTES`. GPT-2 of 12 layers has 600, ResNet-152 460."""
CLASSES_BYTES: Final = 7 * 8 * MOST_CLASSES**2

MOST_PAIRS: Final = 500_000_000  # pairs of classes that blocks may join, counted block by block: a second's work

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


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
