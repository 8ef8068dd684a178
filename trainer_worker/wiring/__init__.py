"""Turning an `nn.Module` into its wiring: it is run once, on a copy, and its neurons are followed from tensor to tensor."""

import logging
from collections import defaultdict
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
from trainer_worker.wiring.report import FALLBACK, SCALAR, Row, WiringReport, draw, show
from trainer_worker.wiring.trace.layout import Layout
from trainer_worker.wiring.trace.run import Run, run
from trainer_worker.wiring.trace.sandbox import undisturbed

__all__ = ["Row", "WiringReport", "describe", "draw", "logged", "show", "wire"]

POOR = 0.5  # coverage below which the log warns: a graph network then sees little of the network

logger = logging.getLogger(__name__)

Parameters = tuple[Parameter, ...]


def wire(model: nn.Module, example_inputs: Any = None, *, parameters: Collection[str] | None = None) -> Wiring:
    """Build the neural graph of a module: which neurons each parameter joins.

    The module is not changed, its random state neither; a module on the meta device will do, since only shapes count.
    What cannot be followed is wired with neurons of its own; `describe` says what and why.

    Args:
        model: any module.
        example_inputs: what its `forward` takes: a tensor, a tuple of arguments or a dict of keyword arguments. Guessed from the
            first layers if None; worth giving where `forward` takes several arguments or wants certain sizes.
        parameters: names of those to wire, normally those that are trained; None for all. They come in the module's order,
            without those that are not real floating-point numbers (quantised, complex), of which the log tells.

    Raises:
        BadWiring: there is nothing to wire, a name is unknown, or a parameter is lazy; `field` is its name.
    """
    return logged(describe(model, example_inputs, parameters=parameters)).wiring


def logged(report: WiringReport, *, needed: bool = True) -> WiringReport:
    """Say in the log how a module was wired; a warning if poorly, where the forecaster needs it."""
    logger.log(logging.WARNING if needed and report.coverage < POOR else logging.INFO, "%s", report.sentence)
    return report


def describe(
    model: nn.Module, example_inputs: Any = None, *, parameters: Collection[str] | None = None, by_shape: bool = False
) -> WiringReport:
    """As `wire`, with an account of how each parameter was wired; `by_shape` runs nothing, each layer has neurons of its own."""
    whole, chosen, left_out = list_parameters(model, parameters)
    if left_out:
        some = ", ".join(left_out[:3]) + (f" and {len(left_out) - 3} more" if len(left_out) > 3 else "")
        logger.info("not wired and not forecast, as they are not real floating-point numbers: %s", some)
    names = {parameter.name for parameter in chosen}
    with undisturbed():
        seen = Run([*model.parameters()], whole, names) if by_shape else run(model, whole, names, example_inputs)
        wiring, placed = Layout(seen.tracer, whole).draw(names)
    if len(chosen) < len(whole):
        wiring = restrict(wiring, chosen)
    blocks: dict[int, list[Block]] = defaultdict(list)
    for block in wiring.blocks:
        blocks[block.parameter].append(block)
    rows = []
    for number, each in enumerate(chosen):
        how = SCALAR if not each.shape else seen.how.get(each.name, FALLBACK) if placed[each.name] else FALLBACK
        followed = {SCALAR: 1.0, FALLBACK: 0.0}.get(how, placed[each.name])
        rows.append(Row(each.name, each.shape, how, followed, tuple(blocks[number])))
    lost = (f"operator {name} could not be followed: {why}" for name, why in seen.tracer.lost.items())
    return WiringReport(wiring, type(model).__name__, tuple(rows), (*seen.remarks, *lost), seen.inputs, left_out)


def list_parameters(model: nn.Module, names: Collection[str] | None = None) -> tuple[Parameters, Parameters, tuple[str, ...]]:
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
    numbered = [(block, numbers[block.parameter]) for block in wiring.blocks if block.parameter != STRUCTURE]
    weights = [replace(block, parameter=number) for block, number in numbered if number is not None]
    kept = np.zeros(wiring.neurons, dtype=np.bool_)
    for block in weights:
        kept[block.source : block.source + block.sources] = kept[block.target : block.target + block.targets] = True
    structure = [part for block in wiring.blocks if block.parameter == STRUCTURE for part in _between(block, kept)]
    for block in structure:
        kept[block.source : block.source + block.sources] = True  # nodes of attention heads
    place = kept.cumsum() - 1
    blocks = (replace(block, source=int(place[block.source]), target=int(place[block.target])) for block in [*weights, *structure])
    return Wiring(tuple(parameters), max(1, int(kept.sum())), tuple(blocks))


def _between(block: Block, kept: npt.NDArray[np.bool_]) -> Iterator[Block]:
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
