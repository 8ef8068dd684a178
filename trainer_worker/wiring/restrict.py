"""The part of a wiring that some of its parameters need."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from protos.wiring import STRUCTURE, Block, EdgeType, Parameter, Wiring

Mask = npt.NDArray[np.bool_]


def restrict(wiring: Wiring, parameters: Sequence[Parameter]) -> Wiring:
    """Keep the weights of some parameters, their neurons, and the structure between those; neurons are numbered anew.

    A forecast then costs what these parameters cost: of a large frozen network with small trained adapters, little is left.

    Args:
        wiring: of the whole network.
        parameters: those to keep, in the order of `wiring.parameters`.
    """
    index = {parameter.name: number for number, parameter in enumerate(parameters)}
    numbers = [index.get(parameter.name) for parameter in wiring.parameters]
    weights = [
        replace(block, parameter=number)
        for block in wiring.blocks
        if block.parameter != STRUCTURE and (number := numbers[block.parameter]) is not None
    ]
    kept = np.zeros(wiring.neurons, dtype=np.bool_)
    for block in weights:
        kept[block.source : block.source + block.sources] = True
        kept[block.target : block.target + block.targets] = True
    structure = [part for block in wiring.blocks if block.parameter == STRUCTURE for part in _between(block, kept)]
    for block in structure:
        kept[block.source : block.source + block.sources] = True  # nodes of attention heads
    place = kept.cumsum() - 1
    blocks = (replace(block, source=int(place[block.source]), target=int(place[block.target])) for block in [*weights, *structure])
    return Wiring(tuple(parameters), max(1, int(kept.sum())), tuple(blocks))


def _between(block: Block, kept: Mask) -> Iterator[Block]:
    """The parts of a block of structure whose ends are kept; an attention head is, where any of its members is."""
    sources = kept[block.source : block.source + block.sources]
    targets = kept[block.target : block.target + block.targets]
    if block.diagonal:
        for start, count in _runs(sources & targets):
            yield replace(block, source=block.source + start, sources=count, target=block.target + start, targets=count)
        return
    if block.edge_type == EdgeType.HEAD:
        sources = np.ones_like(sources)
    for first, many in _runs(sources):
        for start, count in _runs(targets):
            yield replace(block, source=block.source + first, sources=many, target=block.target + start, targets=count)


def _runs(mask: Mask) -> Iterator[tuple[int, int]]:
    """(start, count) of the stretches that are true."""
    edges = np.flatnonzero(np.diff(mask.astype(np.int8), prepend=0, append=0))
    for start, end in edges.reshape(-1, 2).tolist():
        yield start, end - start
