"""What is known of optimizers: which one really steps, where its state lies, and which cannot be helped."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from torch import Tensor
from torch.optim import Optimizer

from trainer_worker.errors import BadArgument

REFUSED: Final = {
    "LBFGS": "it remembers gradients of earlier weights and searches along lines, which a push makes wrong",
}
"""Optimizers that no push can help, by class name, with the reason."""


def find_optimizers(given: Optimizer | Sequence[Optimizer]) -> list[Optimizer]:
    """The optimizers whose `step` is called in the end: those given, or those that wrappers such as Accelerate's hold.

    Raises:
        BadArgument: one is no optimizer, or of a kind that cannot be helped.
    """
    listed = list(given) if isinstance(given, list | tuple) else [given]
    if not listed:
        raise BadArgument("optimizer", "the list is empty; pass the optimizer that trains the model")
    return [_checked(optimizer) for optimizer in listed]


def state_of(optimizer: Optimizer) -> Mapping[Tensor, Any]:
    """The state by parameter; that of an optimizer inside, where it lies there (`ZeroRedundancyOptimizer`)."""
    inner = getattr(optimizer, "optim", None)
    return inner.state if isinstance(inner, Optimizer) else optimizer.state


def _checked(optimizer: Any) -> Optimizer:
    # Accelerate's wrapper is an Optimizer itself, whose hooks nobody calls
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    if not isinstance(optimizer, Optimizer):
        raise BadArgument("optimizer", f"must be a torch.optim.Optimizer or a list of them, not {type(optimizer).__name__}")
    for kind in type(optimizer).__mro__:
        if kind.__name__ in REFUSED:
            raise BadArgument("optimizer", f"{kind.__name__} cannot be nowcast: {REFUSED[kind.__name__]}")
    return optimizer
