"""Blocks with neurons of their own, for parameters whose place in the network is not known."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from protos.wiring import EdgeType, Parameter
from trainer_worker.wiring.canvas import Canvas, Neurons

MAX_STRETCHES = 2**12
"""Stretches of unseen weights beyond which they stay out of the wiring, and keep their last value in a forecast."""


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
