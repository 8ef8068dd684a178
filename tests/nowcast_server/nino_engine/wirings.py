"""Wirings of every form a block may have, by hand and drawn at random."""

import random
from itertools import permutations

import torch
from torch import Tensor

from nowcast_server.nino.checkpoint import Checkpoint
from nowcast_server.nino.engine import Sizes, StreamingEngine
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
    """Embedding, layers of two matrices with biases, norms and residuals, readout: large and small blocks of both layouts."""
    parameters: list[Parameter] = [Parameter("embedding", (vocabulary, width))]
    blocks = [Block(EdgeType.WORD_EMBEDDING, 0, vocabulary, vocabulary, width, False, 0, 0, width, 1)]
    stream, neurons = vocabulary, vocabulary + width
    for layer in range(layers):
        inner, bias, after = neurons, neurons + 4 * width, neurons + 4 * width + 2
        first = len(parameters)
        parameters += [
            Parameter(f"{layer}.up", (width, 4 * width)),
            Parameter(f"{layer}.up.bias", (4 * width,)),
            Parameter(f"{layer}.down", (width, 4 * width)),
            Parameter(f"{layer}.norm", (width,)),
        ]
        blocks += [
            Block(EdgeType.LINEAR, stream, width, inner, 4 * width, False, first, 0, 4 * width, 1),
            Block(EdgeType.OTHER, bias, 1, inner, 4 * width, False, first + 1, 0, 0, 1),
            Block(EdgeType.LINEAR, inner, 4 * width, after, width, False, first + 2, 0, 1, 4 * width),
            Block(EdgeType.NORM, stream, width, after, width, True, first + 3, 0, 0, 1),
            Block(EdgeType.RESIDUAL, stream, width, after, width, True),
            Block(EdgeType.HEAD, bias + 1, 1, after, width),
        ]
        stream, neurons = after, after + width
    parameters.append(Parameter("head", (vocabulary, width)))
    blocks.append(Block(EdgeType.LINEAR, stream, width, neurons, vocabulary, False, len(parameters) - 1, 0, 1, width))
    return Wiring(tuple(parameters), neurons + vocabulary, tuple(blocks))


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
