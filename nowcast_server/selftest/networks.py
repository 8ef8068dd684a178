"""Test networks of every kind of block and any size, as wirings: the server knows no modules."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor

from protos.wiring import Block, EdgeType, Parameter, Wiring

CONTEXT: Final = 5


@dataclass
class _Network:
    """A wiring under construction."""

    neurons: int = 0
    parameters: list[Parameter] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)

    def layer(self, count: int) -> slice:
        self.neurons += count
        return slice(self.neurons - count, self.neurons)

    def dense(self, kind: EdgeType, source: slice, target: slice, *, slots: int = 1, by_source: bool = False) -> None:
        """A weight for each pair, the sources' axis first if `by_source`."""
        sources, targets = _count(source), _count(target)
        strides = (targets * slots, slots) if by_source else (slots, sources * slots)
        layout = {"parameter": self._parameter(sources * targets * slots), "source_stride": strides[0], "target_stride": strides[1]}
        weights: dict[str, Any] = {**layout, "slots": slots, "slot_stride": int(slots > 1)}
        self.blocks.append(Block(kind, source.start, sources, target.start, targets, **weights))

    def bias(self, target: slice) -> None:
        one = self.layer(1)
        weights: dict[str, Any] = {"parameter": self._parameter(_count(target)), "target_stride": 1}
        self.blocks.append(Block(EdgeType.OTHER, one.start, 1, target.start, _count(target), **weights))

    def norm(self, source: slice, target: slice) -> None:
        weights: dict[str, Any] = {"parameter": self._parameter(_count(target)), "target_stride": 1}
        self.blocks.append(Block(EdgeType.NORM, source.start, _count(source), target.start, _count(target), True, **weights))

    def residual(self, source: slice, target: slice) -> None:
        self.blocks.append(Block(EdgeType.RESIDUAL, source.start, _count(source), target.start, _count(target), True))

    def heads(self, target: slice) -> None:
        one = self.layer(1)
        self.blocks.append(Block(EdgeType.HEAD, one.start, 1, target.start, _count(target)))

    def wiring(self) -> Wiring:
        return Wiring(tuple(self.parameters), self.neurons, tuple(self.blocks))

    def _parameter(self, size: int) -> int:
        self.parameters.append(Parameter(f"{len(self.parameters)}", (size,)))
        return len(self.parameters) - 1


def _count(neurons: slice) -> int:
    return int(neurons.stop - neurons.start)


def convolutional(*channels: int, classes: int = 10) -> Wiring:
    """3 x 3 convolutions with biases, and a readout."""
    network = _Network()
    layer = network.layer(channels[0])
    for count in channels[1:]:
        following = network.layer(count)
        network.dense(EdgeType.CONVOLUTION, layer, following, slots=9)
        network.bias(following)
        layer = following
    readout = network.layer(classes)
    network.dense(EdgeType.LINEAR, layer, readout)
    network.bias(readout)
    return network.wiring()


def transformer(width: int, *, layers: int, vocabulary: int) -> Wiring:
    """Word embedding, layers of attention and MLP, readout: some 2 * vocabulary * width + layers * 12 * width^2 weights."""
    network = _Network()
    words, stream = network.layer(vocabulary), network.layer(width)
    network.dense(EdgeType.WORD_EMBEDDING, words, stream, by_source=True)
    for _ in range(layers):
        values, after = network.layer(width), network.layer(width)
        for kind in (EdgeType.QUERY, EdgeType.KEY, EdgeType.VALUE):
            network.dense(kind, stream, values)
        network.heads(values)
        network.dense(EdgeType.LINEAR, values, after)
        network.residual(stream, after)
        hidden, stream = network.layer(4 * width), network.layer(width)
        network.norm(after, stream)
        network.dense(EdgeType.LINEAR, after, hidden)
        network.bias(hidden)
        network.dense(EdgeType.LINEAR, hidden, stream, by_source=True)
        network.residual(after, stream)
    network.dense(EdgeType.LINEAR, stream, network.layer(vocabulary))
    return network.wiring()


FAMILIES: Final[Mapping[str, Callable[[], Wiring]]] = {
    "small": lambda: convolutional(1, 8, 12),
    "convolutional": lambda: convolutional(3, 34, 40),
    "transformer": lambda: transformer(40, layers=2, vocabulary=100),
    "wide": lambda: transformer(24, layers=1, vocabulary=1200),
}
"""Of one bundle, of panels with nine slots, of panels of both layouts, and of many neurons."""


def snapshots(wiring: Wiring, *, device: torch.device, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Tensor]:
    """A smooth random walk of the weights: (n,) each."""
    generator = torch.Generator(device).manual_seed(seed)
    weights = torch.randn(wiring.size, generator=generator, device=device)
    rows = []
    for _ in range(CONTEXT):
        weights = weights + 0.1 * torch.randn(wiring.size, generator=generator, device=device)
        rows.append(weights.to(dtype))
    return rows


def features(wiring: Wiring, count: int) -> Tensor:
    """In place of Laplacian features, which take seconds for large networks: (neurons, count)."""
    return torch.randn(wiring.neurons, count, generator=torch.Generator().manual_seed(1)).div_(wiring.neurons**0.5)
