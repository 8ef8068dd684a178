"""Which of a module's parameters are wired: listing them, and the part of a wiring that they need."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn
from torch.nn.parameter import is_lazy

from protos.errors import BadWiring
from protos.wiring import STRUCTURE, Block, EdgeType, Parameter, Wiring
from trainer_worker.wiring.blocks import ranges

Mask = npt.NDArray[np.bool_]


def list_parameters(
    model: nn.Module, names: Collection[str] | None = None
) -> tuple[tuple[Parameter, ...], tuple[Parameter, ...], tuple[str, ...]]:
    """List a module's parameters in the order of `named_parameters()`, shared ones once: all of them; those to wire, of `names` or
    all; and what was asked for but is not real floating-point numbers, with its dtype. Raises `BadWiring`: a name is unknown, a
    parameter is lazy, or none is left; `field` is its name.
    """
    found: dict[str, Any] = dict(model.named_parameters())
    wanted = found.keys() if names is None else set(names)
    for name in sorted(wanted - found.keys()):
        raise BadWiring(f"{type(model).__name__} has no parameter {name!r}; give names as `named_parameters()` does", field=name)
    for name, parameter in found.items():
        if is_lazy(parameter):
            detail = f"parameter {name!r} is lazy and has no shape yet: run one batch through the model before wiring it"
            raise BadWiring(detail, field=name)
    real = {name for name in wanted if found[name].dtype.is_floating_point}
    if not real:
        raise BadWiring(f"{type(model).__name__} has no real floating-point parameters to forecast", field="model")
    whole = tuple(Parameter(name, tuple(parameter.shape)) for name, parameter in found.items())
    odd = (f"{name} ({str(found[name].dtype).removeprefix('torch.')})" for name in found if name in wanted and name not in real)
    return whole, tuple(parameter for parameter in whole if parameter.name in real), tuple(odd)


def restrict(wiring: Wiring, parameters: Sequence[Parameter]) -> Wiring:
    """Keep the weights of some parameters, in their order, their neurons, numbered anew, and the structure between. A forecast then
    costs what these parameters cost: of a large frozen network with small trained adapters, little is left.
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
        kept[block.source : block.source + block.sources] = kept[block.target : block.target + block.targets] = True
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
        sources = targets = sources & targets
    elif block.edge_type == EdgeType.HEAD:
        sources = np.ones_like(sources)
    firsts, seconds = ([*ranges(np.flatnonzero(mask).tolist())] for mask in (sources, targets))
    for first, second in zip(firsts, seconds, strict=True) if block.diagonal else product(firsts, seconds):
        start, stop = block.source + first.start, block.target + second.start
        yield replace(block, source=start, sources=len(first), target=stop, targets=len(second))
