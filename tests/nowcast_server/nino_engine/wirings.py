"""Wirings of every form a block may have, by hand and drawn at random."""

import random
from itertools import permutations

import torch
from torch import Tensor

from nowcast_server.nino.checkpoint import Checkpoint
from nowcast_server.nino.engine import Sizes, StreamingEngine
from nowcast_server.selftest.networks import transformer
from protos.wiring import Block, EdgeType, Parameter, Wiring
from trainer_worker.metatrain.reference import Reference

TINY = Sizes(panel=96, tile=40, sources=16, bundle=30, small=20, span=50, rows=7)
"""Cuts even small blocks into many panels, tiles and bundles of uneven sizes."""

_WEIGHTS = [kind for kind in EdgeType if kind < EdgeType.RESIDUAL]


def drawn_wiring(seed: int, *, blocks: int = 12, neurons: int = 90) -> Wiring:
    """Random blocks: dense, diagonal, structural, parallel, of any layout and slots, some weights in none of them."""
    draw = random.Random(seed)
    parameters: list[Parameter] = []
    rows: list[Block] = []
    for index in range(blocks):
        diagonal = draw.random() < 0.25
        sources = draw.choice([1, 2, 5, 24, 40])
        targets = sources if diagonal else draw.choice([1, 3, 7, 32, 40])
        place = (draw.randrange(neurons - sources + 1), sources, draw.randrange(neurons - targets + 1), targets, diagonal)
        if draw.random() < 0.3:
            rows.append(Block(draw.choice([EdgeType.RESIDUAL, EdgeType.HEAD]), *place))
            continue
        slots = draw.choice([1, 1, 1, 4, 9])
        sizes = [1 if diagonal else sources, targets, slots]
        order = draw.choice(list(permutations(range(3))))
        strides, stride = [0, 0, 0], 1
        for axis in reversed(order):
            strides[axis], stride = stride, stride * sizes[axis]
        spare = draw.choice([0, 0, 3])  # weights before the block that nobody holds
        rows.append(
            Block(
                draw.choice(_WEIGHTS),
                *place,
                parameter=len(parameters),
                offset=spare,
                source_stride=0 if diagonal else strides[0],
                target_stride=strides[1],
                slots=slots,
                slot_stride=strides[2],
            )
        )
        parameters.append(Parameter(f"{index}", (stride + spare,)))
    parameters.append(Parameter("scalar", ()))
    return Wiring(tuple(parameters), neurons, tuple(rows))


def transformer_wiring(*, width: int = 48, layers: int = 2, vocabulary: int = 150) -> Wiring:
    """Large and small blocks of both layouts."""
    return transformer(width, layers=layers, vocabulary=vocabulary)


def node_pe(wiring: Wiring, *, count: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(wiring.neurons, count, generator=torch.Generator().manual_seed(seed)) / wiring.neurons**0.5


def relative_error(ours: Tensor, theirs: Tensor, last: Tensor) -> float:
    """The worst over horizons, as the parity fixtures define it."""
    return max(float((a - b).norm() / (b - last).norm()) for a, b in zip(ours, theirs, strict=True))


def compare(checkpoint: Checkpoint, wiring: Wiring, states: Tensor, *, sizes: Sizes | None = None) -> float:
    """Relative error of the streaming engine against the reference."""
    horizons = (1, 7, 40)
    features = node_pe(wiring, count=checkpoint.options.laplacian) if checkpoint.options.graph else None
    ours = StreamingEngine(checkpoint, sizes=sizes).forecast(wiring, states, horizons=horizons, node_pe=features)
    theirs = Reference(checkpoint).forecast(wiring, states, horizons=horizons, node_pe=features)
    return relative_error(ours, theirs, states[-1].float())
