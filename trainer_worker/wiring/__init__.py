"""Turning an `nn.Module` into its wiring: it is run once, on a copy, and its neurons are followed from tensor to tensor."""

import logging
from collections import defaultdict
from collections.abc import Collection
from typing import Any

from torch import nn

from protos.wiring import Block, Wiring
from trainer_worker.wiring.parameters import list_parameters, restrict
from trainer_worker.wiring.report import FALLBACK, SCALAR, Row, WiringReport, draw, show
from trainer_worker.wiring.trace.layout import Layout
from trainer_worker.wiring.trace.run import run
from trainer_worker.wiring.trace.sandbox import undisturbed

__all__ = ["Row", "WiringReport", "describe", "draw", "logged", "show", "wire"]

POOR = 0.5  # coverage below which the log warns: a graph network then sees little of the network

logger = logging.getLogger(__name__)


def wire(model: nn.Module, example_inputs: Any = None, *, parameters: Collection[str] | None = None) -> Wiring:
    """Build the neural graph of a module: which neurons each parameter joins.

    The module is not changed, its random state neither; a module on the meta device will do, since only shapes count.
    What cannot be followed is wired with neurons of its own; `describe` says what and why.

    Args:
        model: any module.
        example_inputs: what its `forward` takes: a tensor, a tuple of arguments or a dict of keyword arguments. Guessed from the
            first layers if None; worth giving where `forward` takes several arguments or wants certain sizes.
        parameters: names of those to wire, as `named_parameters()` gives them, normally those that are trained; None for all. The
            wiring's parameters are these in the order of `named_parameters()`. Those that are not real floating-point numbers
            (quantised, complex) are left out, with one line in the log.

    Raises:
        BadWiring: there is nothing to wire, a name is unknown, or a parameter is lazy; `field` is its name.
    """
    return logged(describe(model, example_inputs, parameters=parameters)).wiring


def logged(report: WiringReport) -> WiringReport:
    """Say in the log how a module was wired."""
    logger.log(logging.INFO if report.coverage >= POOR else logging.WARNING, "%s", report.sentence)
    return report


def describe(model: nn.Module, example_inputs: Any = None, *, parameters: Collection[str] | None = None) -> WiringReport:
    """As `wire`, with an account of how each parameter was wired."""
    whole, chosen, left_out = list_parameters(model, parameters)
    if left_out:
        some = ", ".join(left_out[:3]) + (f" and {len(left_out) - 3} more" if len(left_out) > 3 else "")
        logger.info("not wired and not forecast, as they are not real floating-point numbers: %s", some)
    names = {parameter.name for parameter in chosen}
    with undisturbed():
        seen = run(model, whole, names, example_inputs)
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
