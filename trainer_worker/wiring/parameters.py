"""List a module's parameters for the wiring, and check them."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from protos.errors import BadWiring
from protos.wiring import Parameter


@dataclass(frozen=True)
class Listed:
    """A module's parameters in the order of `named_parameters()`, shared ones once.

    Args:
        whole: all of them.
        chosen: those that are wired.
        left_out: those that were asked for but are not real floating-point numbers, each with its dtype.
    """

    whole: tuple[Parameter, ...]
    chosen: tuple[Parameter, ...]
    left_out: tuple[str, ...]


def list_parameters(model: nn.Module, names: Collection[str] | None = None) -> Listed:
    """List the parameters of a module and those to be wired.

    Args:
        model: any module.
        names: names of the parameters to wire; None for all.

    Raises:
        BadWiring: a name is not one of the module's, a parameter is lazy and not initialised, or none is left; `field` is its name.
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
    return Listed(whole, tuple(parameter for parameter in whole if parameter.name in real), tuple(odd))
