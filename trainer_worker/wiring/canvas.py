"""Where a wiring is drawn: neurons are numbered as they are asked for, blocks listed as they are drawn."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from protos.wiring import MAX_SLOTS, STRUCTURE, Block, EdgeType, Parameter, Wiring

MAX_STRETCHES = 2**12
"""Stretches of unseen weights beyond which they stay out of the wiring, and keep their last value in a forecast."""


def edges(kind: int, sources: range, targets: range, *, diagonal: bool = False, parameter: int = STRUCTURE) -> Block:
    """A block between two ranges of neurons."""
    return Block(int(kind), sources.start, len(sources), targets.start, len(targets), diagonal=diagonal, parameter=parameter)


class Canvas:
    """Collects the blocks of one wiring over a fixed list of parameters, which are known by their index."""

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        self.parameters = tuple(parameters)
        self._blocks: list[Block] = []
        self._neurons = 0

    def neurons(self, count: int) -> range:
        """`count` new neurons."""
        self._neurons += count
        return range(self._neurons - count, self._neurons)

    def draw(self, block: Block) -> None:
        """Draw a block; more than nine slots go to parallel edges, nine each."""
        for first in range(0, block.slots, MAX_SLOTS):
            count = min(MAX_SLOTS, block.slots - first)
            offset, stride = block.offset + first * block.slot_stride, block.slot_stride if count > 1 else 0
            self._blocks.append(replace(block, offset=offset, slots=count, slot_stride=stride))

    def vector(self, parameter: int, targets: range, kind: EdgeType, *, offset: int = 0) -> None:
        """Draw a bias or gain: one source neuron of its own, an edge to each target."""
        self.draw(replace(edges(kind, self.neurons(1), targets, parameter=parameter), offset=offset, target_stride=1))

    def draw_alone(self, parameters: Sequence[int]) -> None:
        """Draw parameters by their shape alone: a matrix joins new inputs to new outputs; a module's vectors share its outputs."""
        outputs: dict[str, range] = {}
        for index in parameters:
            parameter = self.parameters[index]
            module, _, key = parameter.name.rpartition(".")
            if len(parameter.shape) > 1:
                outputs[module] = self._draw_matrix(index, parameter)
                continue
            if len(outputs.get(module, ())) != parameter.size:
                outputs[module] = self.neurons(parameter.size)
            self.vector(index, outputs[module], EdgeType.NORM if key == "weight" else EdgeType.OTHER)

    def _draw_matrix(self, index: int, parameter: Parameter) -> range:
        """New inputs to new outputs, of a parameter (out, in, *kernel)."""
        rows, columns = parameter.shape[:2]
        slots = math.prod(parameter.shape[2:])
        sources, targets = self.neurons(columns), self.neurons(rows)
        kind = EdgeType.CONVOLUTION if len(parameter.shape) > 2 else EdgeType.LINEAR
        block = edges(kind, sources, targets, parameter=index)
        self.draw(replace(block, source_stride=slots, target_stride=columns * slots, slots=slots, slot_stride=1))
        return targets

    def draw_rest(self, index: int, seen: Tensor) -> None:
        """Draw the weights of a parameter that were not seen at work when others were: each stretch of them as a vector."""
        ends = torch.nn.functional.pad(~seen, (1, 1)).to(torch.int8).diff()
        starts, stops = (ends == 1).nonzero().flatten().tolist(), (ends == -1).nonzero().flatten().tolist()
        if len(starts) <= MAX_STRETCHES:
            for start, stop in zip(starts, stops, strict=True):
                self.vector(index, self.neurons(stop - start), EdgeType.OTHER, offset=start)

    def wiring(self) -> Wiring:
        return Wiring(self.parameters, max(1, self._neurons), tuple(self._blocks))
