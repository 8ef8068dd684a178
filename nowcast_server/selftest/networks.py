"""Test networks of every kind of block and any size, as wirings: the server knows no modules."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor

from protos.wiring import Block, EdgeType, Parameter, Wiring

CONTEXT: Final = 5


@dataclass
class _Network:
    """A wiring under construction; a layer is a slice of its neurons."""

    neurons: int = 0
    parameters: list[Parameter] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)

    def layer(self, count: int) -> slice:
        self.neurons += count
        return slice(self.neurons - count, self.neurons)

    def join(self, kind: EdgeType, source: slice, target: slice, *, slots: int = 1, by_source: bool = False) -> None:
        """Edges of a kind: diagonal for norms and residuals, else dense; weights, if any, have the sources' axis first or last."""
        sources, targets = source.stop - source.start, target.stop - target.start
        diagonal, layout = kind in {EdgeType.NORM, EdgeType.RESIDUAL}, dict[str, int]()
        if kind < EdgeType.RESIDUAL:
            strides = (0, 1) if diagonal else (targets * slots, slots) if by_source else (slots, sources * slots)
            names = ("parameter", "source_stride", "target_stride", "slots", "slot_stride")
            layout = dict(zip(names, (len(self.parameters), *strides, slots, int(slots > 1)), strict=True))
            shape = (targets,) if diagonal else (sources, targets * slots) if by_source else (targets, sources * slots)
            self.parameters.append(Parameter(f"{len(self.parameters)}", shape))
        self.blocks.append(Block(kind, source.start, sources, target.start, targets, diagonal, **layout))

    def bias(self, target: slice) -> None:
        self.join(EdgeType.OTHER, self.layer(1), target)

    def wiring(self) -> Wiring:
        return Wiring(tuple(self.parameters), self.neurons, tuple(self.blocks))


def convolutional(*channels: int) -> Wiring:
    """3 x 3 convolutions with biases, and a readout of ten classes."""
    network = _Network()
    layer = network.layer(channels[0])
    for count in channels[1:]:
        following = network.layer(count)
        network.join(EdgeType.CONVOLUTION, layer, following, slots=9)
        network.bias(following)
        layer = following
    readout = network.layer(10)
    network.join(EdgeType.LINEAR, layer, readout)
    network.bias(readout)
    return network.wiring()


def transformer(width: int, *, layers: int, vocabulary: int) -> Wiring:
    """Word embedding, layers of attention and MLP, readout: some 2 * vocabulary * width + layers * 12 * width^2 weights."""
    network = _Network()
    words, stream = network.layer(vocabulary), network.layer(width)
    network.join(EdgeType.WORD_EMBEDDING, words, stream, by_source=True)
    for _ in range(layers):
        values, after = network.layer(width), network.layer(width)
        for kind in (EdgeType.QUERY, EdgeType.KEY, EdgeType.VALUE):
            network.join(kind, stream, values)
        network.join(EdgeType.HEAD, network.layer(1), values)
        network.join(EdgeType.LINEAR, values, after)
        network.join(EdgeType.RESIDUAL, stream, after)
        hidden, stream = network.layer(4 * width), network.layer(width)
        network.join(EdgeType.NORM, after, stream)
        network.join(EdgeType.LINEAR, after, hidden)
        network.bias(hidden)
        network.join(EdgeType.LINEAR, hidden, stream, by_source=True)
        network.join(EdgeType.RESIDUAL, after, stream)
    network.join(EdgeType.LINEAR, stream, network.layer(vocabulary))
    return network.wiring()


FAMILIES: Final[Mapping[str, Callable[[], Wiring]]] = {
    "small": lambda: convolutional(1, 8, 12),
    "convolutional": lambda: convolutional(3, 190, 200),
    "transformer": lambda: transformer(40, layers=2, vocabulary=100),
    "wide": lambda: transformer(24, layers=1, vocabulary=1200),
}
"""Of one bundle, of panels with nine slots, of panels of both layouts, and of many neurons."""

SIZES: Final[Mapping[str, Callable[[], Wiring]]] = {
    "14k": lambda: convolutional(1, 16, 32, 32),
    "0.2M": lambda: transformer(64, layers=2, vocabulary=1000),
    "1.4M": lambda: transformer(128, layers=1, vocabulary=5000),
    "30M": lambda: transformer(384, layers=6, vocabulary=25_000),
    "1B": lambda: transformer(2048, layers=18, vocabulary=32_000),
}


def snapshots(wiring: Wiring, *, device: torch.device, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Tensor]:
    """A smooth random walk of the weights: (n,) each."""
    generator = torch.Generator(device).manual_seed(seed)
    weights = torch.randn(wiring.size, generator=generator, device=device)
    rows = []
    for _ in range(CONTEXT):
        weights = weights + 0.1 * torch.randn(wiring.size, generator=generator, device=device)
        rows.append(weights.to(dtype))
    return rows
