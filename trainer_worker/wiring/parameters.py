"""The parameters of a module as the wiring lists them, and the mistakes that can be told from them alone."""

from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from protos.errors import BadWiring
from protos.wiring import Parameter


def list_parameters(model: nn.Module) -> tuple[Parameter, ...]:
    """Every tensor of the flat parameter vector, in its order: `named_parameters()`, shared ones once, frozen ones too.

    Raises:
        BadWiring: there are none, or one is lazy and not initialised, or not of real floating-point numbers; `field` is its name.
    """
    found = []
    parameter: Any
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            detail = f"parameter {name!r} is lazy and has no shape yet: run one batch through the model before wiring it"
            raise BadWiring(detail, field=name)
        if not parameter.dtype.is_floating_point:
            detail = f"parameter {name!r} has dtype {parameter.dtype}; only real floating-point parameters can be forecast"
            raise BadWiring(f"{detail} (store complex numbers with torch.view_as_real)", field=name)
        found.append(Parameter(name, tuple(parameter.shape)))
    if not found:
        raise BadWiring(f"{type(model).__name__} has no parameters to forecast", field="model")
    return tuple(found)
