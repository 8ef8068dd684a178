"""What is known of optimizers: which one steps, where its state lies, how far to push beside it, and which cannot be helped."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from torch import Tensor
from torch.optim import Optimizer

from trainer_worker.errors import BadArgument
from trainer_worker.push import GAIN

_SUMS: Final = "it computes the weights from the sum of all gradients at each step, which undoes every push"
REFUSED: Final = {  # by part of the class's name: why no push can help it
    "LBFGS": "it remembers gradients of earlier weights and searches along lines, which a push makes wrong",
    **dict.fromkeys(("DAdaptAdaGrad", "DAdaptSGD", "FTRL", "MADGRAD"), _SUMS),
}
GAINS: Final = {"Muon": 0.7, "AdEMAMix": 0.5}  # by part of the class's name (bench/acceleration/results)


def gain_for(optimizers: Iterable[Optimizer]) -> float:
    """The gain of pushes beside these optimizers: less than beside Adam where one goes further along a drift by itself."""
    names = (name for each in optimizers for name in _class_names(each))
    return min([GAIN, *(gain for name in names for part, gain in GAINS.items() if part in name)])


def find_optimizers(given: Optimizer | Sequence[Optimizer]) -> list[Optimizer]:
    """The optimizers whose `step` is called in the end: those given, or those that wrappers such as Accelerate's hold. Raises
    `BadArgument`: one is no optimizer, or of a kind that cannot be helped.
    """
    listed = list(given) if isinstance(given, list | tuple) else [given]
    if not listed:
        raise BadArgument("optimizer", "the list is empty; pass the optimizer that trains the model")
    return [_checked(optimizer) for optimizer in listed]


def states_of(optimizers: Iterable[Optimizer]) -> list[Mapping[Tensor, Any]]:
    """What is kept by parameter, of optimizers and of those inside them (`Lookahead`, `ZeroRedundancyOptimizer`), each once."""
    nested = [each for optimizer in optimizers for each in _nested(optimizer)]
    states: dict[int, Mapping[Tensor, Any]] = {id(each.state): each.state for each in nested}
    return [*states.values(), *(kept for each in nested for kept in _beside(each))]


def _beside(optimizer: Optimizer) -> Iterator[Mapping[Tensor, Any]]:
    """What an optimizer keeps in attributes of its own, such as `param_groups_master` of apex: one tensor for each parameter."""
    parameters = list(_tensors(optimizer.param_groups))
    for name, value in vars(optimizer).items():
        kept = [value.get(each) for each in parameters] if isinstance(value, Mapping) else list(_tensors(value))
        if len(kept) == len(parameters):
            yield {parameter: {name: each} for parameter, each in zip(parameters, kept, strict=True)}


def _tensors(value: Any) -> Iterator[Any]:
    """Tensors, and None in place of some, in lists and in groups of parameters."""
    if isinstance(value, Tensor | None):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)
    elif isinstance(value, Mapping):
        yield from _tensors(value.get("params", ()))


def kept_weights(optimizer: Optimizer) -> set[str]:
    """Entries of the state that are weights by what kind of optimizer it is, however far from the model's."""
    return {"z"} if any("ScheduleFree" in type(each).__name__ for each in _nested(optimizer)) else set()


def _nested(optimizer: Optimizer) -> Iterator[Optimizer]:
    yield optimizer
    for name in ("optimizer", "base_optimizer", "optim"):
        if isinstance(inner := getattr(optimizer, name, None), Optimizer):
            yield from _nested(inner)


def _class_names(optimizer: Optimizer) -> Iterator[str]:
    return (kind.__name__ for each in _nested(optimizer) for kind in type(each).__mro__)


def _checked(optimizer: Any) -> Optimizer:
    # Accelerate's wrapper is an Optimizer whose step calls no hooks; that of Lookahead does, after the one inside
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer) and not hasattr(type(optimizer).step, "hooked"):
        optimizer = inner
    if not isinstance(optimizer, Optimizer):
        way = "if the loop has none, pass one that never steps, and call nowcast.step() after each update"
        raise BadArgument("optimizer", f"must be a torch.optim.Optimizer or a list of them, not {type(optimizer).__name__}; {way}")
    for name in _class_names(optimizer):
        for part, reason in REFUSED.items():
            if part in name:
                raise BadArgument("optimizer", f"{name} cannot be nowcast: {reason}")
    return optimizer
