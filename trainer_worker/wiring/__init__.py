"""Turning an `nn.Module` into its wiring.

Named families (GPT-2, Llama, BERT, ViT and relatives) are read by their parameters' names, so that their graph is the published
one; every other module is run once, on a copy and beside the training, and its neurons are followed from tensor to tensor.
"""

from typing import Any

from torch import nn

from protos.wiring import Wiring
from trainer_worker.wiring.families import wire_family
from trainer_worker.wiring.parameters import list_parameters
from trainer_worker.wiring.report import FALLBACK, SCALAR, Row, WiringReport
from trainer_worker.wiring.show import draw, show
from trainer_worker.wiring.trace import trace

__all__ = ["Row", "WiringReport", "describe", "draw", "show", "wire"]


def wire(model: nn.Module, example_inputs: Any = None, *, heads: bool = True, published: bool = True) -> Wiring:
    """The neural graph of a module: which neurons each parameter joins.

    The module is not changed, its random state neither; a module on the meta device will do, since only shapes count.
    What cannot be followed is wired with neurons of its own; `describe` says what and why.

    Args:
        model: any module.
        example_inputs: what its `forward` takes: a tensor, a tuple of arguments or a dict of keyword arguments. Guessed from the
            first layers if None; worth giving where `forward` takes several arguments or wants certain sizes.
        heads: tie query, key and value neurons by attention heads; False gives the naive graph of the ablation.
        published: wire the named families exactly as the published code does, oddities included; False traces them too.

    Raises:
        BadWiring: there are no parameters, or one cannot be forecast (lazy, complex, integer); `field` is its name.
    """
    return describe(model, example_inputs, heads=heads, published=published).wiring


def describe(model: nn.Module, example_inputs: Any = None, *, heads: bool = True, published: bool = True) -> WiringReport:
    """As `wire`, with an account of how each parameter was wired."""
    parameters = list_parameters(model)
    name = type(model).__name__
    found = wire_family(model, parameters, heads=heads) if published else None
    if found is not None:
        family, wiring = found
        how = {parameter.name: "family" if parameter.shape else SCALAR for parameter in parameters}
        return WiringReport(wiring, name, family, how, dict.fromkeys(how, 1.0))
    traced = trace(model, parameters, example_inputs, heads=heads)
    how = {item.name: traced.how.get(item.name, FALLBACK) if item.shape else SCALAR for item in parameters}
    followed = {
        item.name: 0.0 if how[item.name] == FALLBACK else traced.placed[item.name] if item.shape else 1.0 for item in parameters
    }
    return WiringReport(traced.wiring, name, None, how, followed, tuple(traced.remarks))
