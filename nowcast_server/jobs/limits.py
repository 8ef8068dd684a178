"""What a server takes in: networks of a size, and wirings that hold what they say."""

from collections import defaultdict
from typing import Final

import numpy as np
from numpy import typing as npt
from numpy.lib.stride_tricks import as_strided

from protos.errors import BadWiring, TooLarge
from protos.frames import DTYPE_BYTES
from protos.messages import JobSpec
from protos.wiring import STRUCTURE, Block, Wiring

Marks = npt.NDArray[np.bool_]
STRUCTURE_PER_NEURON: Final = 64
"""Edges without weights a neuron may have, besides as many as there are weights. They cost a forecast time but no upload, so
they need a bound of their own."""


def check_size(spec: JobSpec, *, max_snapshot_bytes: int) -> None:
    """Is this a network a server can work on at all?

    Raises:
        BadWiring: it has no parameters.
        TooLarge: a snapshot is larger than allowed, or the graph is out of all proportion to its weights.
    """
    wiring = spec.wiring
    if not wiring.size:
        raise BadWiring("the wiring's parameters hold no values", field="wiring.parameters")
    snapshot_bytes = wiring.size * DTYPE_BYTES[spec.dtype]
    if snapshot_bytes > max_snapshot_bytes:
        detail = (
            f"a snapshot of {wiring.size} {spec.dtype} values has {snapshot_bytes} bytes; this server takes {max_snapshot_bytes}"
        )
        raise TooLarge(detail, field="wiring.parameters", limit_bytes=max_snapshot_bytes)
    _check_structure(wiring)


def _check_structure(wiring: Wiring) -> None:
    neurons = 64 + 4 * wiring.size
    if wiring.neurons > neurons:
        raise TooLarge(f"{wiring.neurons} neurons for {wiring.size} weights; at most {neurons} make sense", field="wiring.neurons")
    structure = sum(block.edges for block in wiring.blocks if not block.size)
    most = wiring.size + STRUCTURE_PER_NEURON * wiring.neurons
    if structure > most:
        detail = f"{structure} edges without weights; at most {most} make sense for this network"
        raise TooLarge(detail, field="wiring.blocks")


def check_coverage(wiring: Wiring) -> None:
    """Does every weight lie in at most one block? One that lay in two would stand for another, which is in none and would be
    counted as forecast. Takes a byte for each value of the largest parameter, and a second for a billion values or so.

    Raises:
        BadWiring: naming the parameter.
    """
    holding: dict[int, list[Block]] = defaultdict(list)
    for block in wiring.blocks:
        if block.parameter != STRUCTURE:
            holding[block.parameter].append(block)
    for index, blocks in holding.items():
        parameter = wiring.parameters[index]
        seen = np.zeros(parameter.size, dtype=bool)
        for block in blocks:
            _positions(seen, block)[...] = True
        if np.count_nonzero(seen) < sum(block.size for block in blocks):
            raise BadWiring(f"two edges hold the same weight of {parameter.name!r}", field="wiring.blocks")


def _positions(values: Marks, block: Block) -> Marks:
    """A parameter's values as the block sees them, of one byte each; the wiring has made sure that all lie within it."""
    ends: tuple[int, ...] = (block.sources, block.targets)
    strides: tuple[int, ...] = (block.source_stride, block.target_stride)
    if block.diagonal:
        ends, strides = (block.sources,), (block.source_stride + block.target_stride,)
    return as_strided(values[block.offset :], (*ends, block.slots), (*strides, block.slot_stride))
