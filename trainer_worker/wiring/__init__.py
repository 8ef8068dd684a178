"""Turning an `nn.Module` into its wiring.

A module is run once, on a copy and beside the training, and its neurons are followed from tensor to tensor. On request, named
families (GPT-2, Llama, BERT, ViT and relatives) are read by their parameters' names instead, so that their graph is the published
one.
"""

import logging
from collections.abc import Collection
from typing import Any, Literal

from torch import nn

from protos.wiring import Wiring
from trainer_worker.wiring.families import wire_family
from trainer_worker.wiring.parameters import Listed, list_parameters
from trainer_worker.wiring.report import FALLBACK, SCALAR, Row, WiringReport
from trainer_worker.wiring.restrict import restrict
from trainer_worker.wiring.show import draw, show
from trainer_worker.wiring.trace import trace

__all__ = ["Layout", "Row", "WiringReport", "describe", "draw", "logged", "show", "wire"]

Layout = Literal["traced", "published"]

POOR = 0.5
"""Coverage below which the log warns: a graph network then sees little of the network."""

logger = logging.getLogger(__name__)


def wire(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    parameters: Collection[str] | None = None,
    heads: bool = True,
    layout: Layout = "traced",
) -> Wiring:
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
        heads: tie query, key and value neurons by attention heads; False gives the naive graph of the ablation.
        layout: "published" wires the named families exactly as the published code does, oddities included, for a published
            checkpoint; "traced" traces them like any other module.

    Raises:
        BadWiring: there is nothing to wire, a name is unknown, or a parameter is lazy; `field` is its name.
    """
    return logged(describe(model, example_inputs, parameters=parameters, heads=heads, layout=layout)).wiring


def logged(report: WiringReport) -> WiringReport:
    """Say in the log how a module was wired."""
    logger.log(logging.INFO if report.coverage >= POOR else logging.WARNING, "%s", report.sentence)
    return report


def describe(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    parameters: Collection[str] | None = None,
    heads: bool = True,
    layout: Layout = "traced",
) -> WiringReport:
    """As `wire`, with an account of how each parameter was wired."""
    listed = list_parameters(model, parameters)
    if listed.left_out:
        logger.info("not wired and not forecast, as they are not real floating-point numbers: %s", _some(listed.left_out))
    if layout == "published" and (report := _published(model, listed, heads=heads)):
        return report
    chosen = listed.chosen
    traced = trace(model, listed.whole, {parameter.name for parameter in chosen}, example_inputs, heads=heads)
    wiring = traced.wiring if len(chosen) == len(listed.whole) else restrict(traced.wiring, chosen)
    how = {item.name: traced.how.get(item.name, FALLBACK) if item.shape else SCALAR for item in chosen}
    followed = {item.name: _followed(how[item.name], traced.placed.get(item.name, 1.0)) for item in chosen}
    return WiringReport(
        wiring,
        type(model).__name__,
        None,
        how,
        followed,
        remarks=tuple(traced.remarks),
        inputs=traced.inputs,
        left_out=listed.left_out,
    )


def _followed(how: str, placed: float) -> float:
    """The share of a parameter's weights whose place in the network is known."""
    return {FALLBACK: 0.0, SCALAR: 1.0}.get(how, placed)


def _published(model: nn.Module, listed: Listed, *, heads: bool) -> WiringReport | None:
    """The report of a model of a named family, None for any other."""
    found = wire_family(model, listed.whole, heads=heads)
    if found is None:
        return None
    family, wiring = found
    how = {parameter.name: "family" if parameter.shape else SCALAR for parameter in listed.chosen}
    wiring = wiring if len(listed.chosen) == len(listed.whole) else restrict(wiring, listed.chosen)
    return WiringReport(wiring, type(model).__name__, family, how, dict.fromkeys(how, 1.0), left_out=listed.left_out)


def _some(names: tuple[str, ...]) -> str:
    """The first few of many names."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
