"""Where a wiring is drawn: neurons are numbered as they are asked for, blocks listed as they are drawn."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from protos.wiring import MAX_SLOTS, Block, EdgeType, Parameter, Wiring

MAX_STRETCHES = 2**12
"""Stretches of unseen weights beyond which they stay out of the wiring, and keep their last value in a forecast."""


@dataclass(frozen=True, slots=True)
class Neurons:
    """A range of neurons, `start` .. `start + count - 1`."""

    start: int
    count: int

    def part(self, first: int, count: int) -> "Neurons":
        """`count` of these neurons, from the `first` on."""
        assert first >= 0
        assert first + count <= self.count
        return Neurons(self.start + first, count)


class Canvas:
    """Collects the blocks of one wiring over a fixed list of parameters."""

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        self.parameters = tuple(parameters)
        self._index = {parameter.name: index for index, parameter in enumerate(parameters)}
        self._blocks: list[Block] = []
        self._neurons = 0

    def neurons(self, count: int) -> Neurons:
        """`count` new neurons."""
        self._neurons += count
        return Neurons(self._neurons - count, count)

    def weights(
        self,
        name: str,
        sources: Neurons,
        targets: Neurons,
        kind: EdgeType,
        *,
        strides: tuple[int, int],
        offset: int = 0,
        slots: int = 1,
        slot_stride: int = 1,
        diagonal: bool = False,
    ) -> None:
        """Draw weights of a parameter: `offset + i * strides[0] + j * strides[1] + slot * slot_stride` from source i to target j.

        More than nine slots go to parallel edges, nine each. On a diagonal j = i and only the first stride counts.
        """
        index = self._index[name]
        for first in range(0, slots, MAX_SLOTS):
            count = min(MAX_SLOTS, slots - first)
            self._blocks.append(
                Block(
                    int(kind),
                    sources.start,
                    sources.count,
                    targets.start,
                    targets.count,
                    diagonal=diagonal,
                    parameter=index,
                    offset=offset + first * slot_stride,
                    source_stride=strides[0],
                    target_stride=0 if diagonal else strides[1],
                    slots=count,
                    slot_stride=slot_stride if count > 1 else 0,
                )
            )

    def vector(self, name: str, targets: Neurons, kind: EdgeType, *, offset: int = 0) -> None:
        """Draw a bias or gain: one source neuron of its own, an edge to each target."""
        self.weights(name, self.neurons(1), targets, kind, strides=(0, 1), offset=offset)

    def residual(self, sources: Neurons, targets: Neurons) -> None:
        """Tie source i to target i by an edge without weights."""
        block = Block(int(EdgeType.RESIDUAL), sources.start, sources.count, targets.start, targets.count, diagonal=True)
        self._blocks.append(block)

    def head(self, node: Neurons, members: Neurons) -> None:
        """Tie the neurons of one attention head to its head neuron."""
        self._blocks.append(Block(int(EdgeType.HEAD), node.start, node.count, members.start, members.count))

    def wiring(self) -> Wiring:
        return Wiring(self.parameters, max(1, self._neurons), tuple(self._blocks))


def draw_alone(canvas: Canvas, parameters: Iterable[Parameter]) -> None:
    """Draw each parameter by its shape alone: a matrix joins new inputs to new outputs; a module's vectors share its outputs."""
    outputs: dict[str, Neurons] = {}
    for parameter in parameters:
        module, _, key = parameter.name.rpartition(".")
        if len(parameter.shape) > 1:
            outputs[module] = _matrix(canvas, parameter)
            continue
        shared = outputs.get(module)
        if shared is None or shared.count != parameter.size:
            shared = outputs[module] = canvas.neurons(parameter.size)
        canvas.vector(parameter.name, shared, EdgeType.NORM if key == "weight" else EdgeType.OTHER)


def draw_rest(canvas: Canvas, parameter: Parameter, seen: Tensor) -> None:
    """Draw the weights of a parameter that were not seen at work when others were: each stretch of them as a vector."""
    edges = torch.nn.functional.pad(~seen, (1, 1)).to(torch.int8).diff()
    starts, ends = (edges == 1).nonzero().flatten().tolist(), (edges == -1).nonzero().flatten().tolist()
    if len(starts) <= MAX_STRETCHES:
        for start, end in zip(starts, ends, strict=True):
            canvas.vector(parameter.name, canvas.neurons(end - start), EdgeType.OTHER, offset=start)


def _matrix(canvas: Canvas, parameter: Parameter) -> Neurons:
    """New inputs to new outputs, of a parameter (out, in, *kernel)."""
    rows, columns = parameter.shape[:2]
    slots = math.prod(parameter.shape[2:])
    sources, targets = canvas.neurons(columns), canvas.neurons(rows)
    kind = EdgeType.CONVOLUTION if len(parameter.shape) > 2 else EdgeType.LINEAR
    canvas.weights(parameter.name, sources, targets, kind, strides=(slots, columns * slots), slots=slots)
    return targets
