"""Running a user's module, or those parts of it that run, until every parameter was seen at work."""

import time
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from protos.wiring import Parameter
from trainer_worker.wiring.trace import operators, products  # noqa: F401  (they register the operators)
from trainer_worker.wiring.trace.inputs import Arguments, guesses
from trainer_worker.wiring.trace.sandbox import SECONDS, Limits, TooCostly, copy_of
from trainer_worker.wiring.trace.tracer import Tracer, tensors_of

PASSES = 8  # forward passes tried while parameters remain unseen: chance may route around experts
FRUITLESS = 4  # so many in a row that show nothing new end it
GUESSED_ELEMENTS, GIVEN_ELEMENTS = 2**24, 2**27  # that an operator may put out; the largest parameter's size is always allowed
FEW, MANY_ELEMENTS = 4, 2**16  # of examples with so many elements only so many are run


def run(model: nn.Module, parameters: tuple[Parameter, ...], chosen: set[str], example_inputs: Any) -> "Run":
    """Run a copy of the model until every parameter of the chosen names was seen, with example inputs, or guessed ones if None."""
    try:
        copied, tensors = copy_of(model)
    except Exception as error:  # noqa: BLE001  (copying runs the user's code)
        none = Run(list(model.parameters()), parameters, chosen)
        none.remarks.append(f"the model cannot be copied, so it is not run: {_sentence(error)}")
        return none
    given: Arguments | None = None
    if example_inputs is not None:
        moved = tree_map_only(Tensor, lambda tensor: tensor.detach().to(tensors[0].device), example_inputs)
        positional = tuple(moved) if isinstance(moved, (tuple, list)) else (moved,)
        given = ((), moved) if isinstance(moved, dict) else (positional, {})
    seen = Run(tensors, parameters, chosen)
    seen.visit(copied, "", given)
    return seen


class Run:
    """Runs a module; where it does not run, or leaves parameters unseen, its children. Holds what was seen."""

    def __init__(self, tensors: list[Tensor], parameters: tuple[Parameter, ...], chosen: set[str]) -> None:
        self.tracer = Tracer(tensors)
        self.how: dict[str, str] = {}  # by parameter, "traced", or "traced apart" in a part of the model (of several layers)
        self.remarks: list[str] = []  # what went wrong, one sentence each
        self.inputs: str | None = None  # what the whole model was run with, None if only parts of it ran
        self._names = [parameter.name for parameter in parameters]
        self._sought = {number for number, item in enumerate(parameters) if item.name in chosen and item.shape and item.size}
        self._index = {id(tensor): number for number, tensor in enumerate(tensors)}
        self._largest = max(parameter.size for parameter in parameters)
        self._deadline = time.thread_time() + SECONDS

    def visit(self, module: nn.Module, path: str, given: Arguments | None = None) -> None:
        runs = getattr(module.forward, "__name__", "") != "_forward_unimplemented"
        if not path and not runs and self._unseen(module):
            self.remarks.append("the model has no forward of its own, so its parts were run by themselves")
        tells = runs and not (path and type(module) is nn.Linear)  # which by itself says no more than its shapes do
        if tells and self._unseen(module) and not (given and self._run_given(module, path, given)):
            self._guess(module, path)
        for name, child in module.named_children():
            if self._unseen(child) and not self._late:
                self.visit(child, f"{path}.{name}".lstrip("."))

    @property
    def _late(self) -> bool:
        return time.thread_time() > self._deadline

    def _limits(self, elements: int) -> Limits:
        return Limits(elements=max(elements, self._largest), deadline=self._deadline)

    def _run_given(self, module: nn.Module, path: str, given: Arguments) -> bool:
        limits = self._limits(GIVEN_ELEMENTS)
        for arguments in (_few_examples(given), given):
            failure = _trial(module, arguments, limits)
            if not failure:
                self._trace(module, path, arguments, limits)
                self.inputs = f"the given inputs {_described(arguments)}"
                return True
        self.remarks.append(f"the example inputs do not run: {failure}")
        return False

    def _guess(self, module: nn.Module, path: str) -> None:
        like = next((parameter for parameter in module.parameters() if parameter.is_floating_point()), next(module.parameters()))
        limits = self._limits(GUESSED_ELEMENTS)
        first = ""
        for guess in guesses(module):
            arguments = tree_map_only(
                Tensor, lambda each: each.to(like.device, like.dtype if each.is_floating_point() else each.dtype), guess
            )
            failure = _trial(module, arguments, limits)
            if not failure:
                self._trace(module, path, arguments, limits)
                if not path:
                    self.inputs = f"guessed inputs {_described(arguments)}"
                return
            if not first or (TooCostly.__name__ in failure and TooCostly.__name__ not in first):
                first = failure
            if self._late:
                first = f"no guess ran in {SECONDS:.0f} s"
                break
        self.remarks.append(f"{path or 'the model'} could not be run with guessed inputs (give example inputs): {first}")

    def _trace(self, module: nn.Module, path: str, arguments: Arguments, limits: Limits) -> None:
        """Forward passes in evaluation and training mode in turn, each as far as it runs, while they show more parameters."""
        fruitless = 0
        for number in range(PASSES):
            before = self.tracer.uses.count
            torch.manual_seed(number)
            args, kwargs = tree_map_only(Tensor, partial(_redrawn, number), arguments)
            self.tracer.begin(module.parameters(), tensors_of((args, kwargs)), limits)
            with suppress(Exception), self.tracer:  # it is the user's code, and may raise anything
                module.train(number % 2 == 1)(*args, **kwargs)
            self._note(module, path)
            fruitless = fruitless + 1 if self.tracer.uses.count == before else 0
            if fruitless == FRUITLESS or not self._unseen(module):
                break

    def _note(self, module: nn.Module, path: str) -> None:
        if not path or list(module.children()):
            for number in self._numbers(module):
                if self.tracer.uses.of[number]:
                    self.how.setdefault(self._names[number], "traced apart" if path else "traced")

    def _numbers(self, module: nn.Module) -> set[int]:
        """The indices of a module's parameters, but for those that its forward has made."""
        return {self._index[id(parameter)] for parameter in module.parameters() if id(parameter) in self._index}

    def _unseen(self, module: nn.Module) -> bool:
        return any(not self.tracer.uses.of[number] for number in self._numbers(module) & self._sought)


def _few_examples(arguments: Arguments) -> Arguments:
    """The first examples of a large batch, if the tensors agree on how many there are."""
    tensors = tensors_of(arguments)
    lengths = {len(tensor) if tensor.dim() else 0 for tensor in tensors}
    if len(lengths) != 1 or max(lengths) <= FEW or sum(tensor.numel() for tensor in tensors) < MANY_ELEMENTS:
        return arguments
    return tree_map_only(Tensor, lambda tensor: tensor[:FEW], arguments)  # type: ignore[no-any-return]


def _trial(module: nn.Module, arguments: Arguments, limits: Limits) -> str:
    """Why the module does not take the arguments, of which it gets copies: it may write into them; "" if it does."""
    args, kwargs = tree_map_only(Tensor, torch.clone, arguments)
    try:
        with limits:
            module.eval()(*args, **kwargs)
    except Exception as error:  # noqa: BLE001  (it is the user's code, and may raise anything)
        return _sentence(error)
    return ""


def _described(arguments: Arguments) -> str:
    told = (f"{'x'.join(map(str, tensor.shape)) or 'scalar'} {str(tensor.dtype)[6:]}" for tensor in tensors_of(arguments))
    return ", ".join(told) or "none"


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def _redrawn(seed: int, tensor: Tensor) -> Tensor:
    """The example itself at first; then other random features, so that other paths are taken."""
    return torch.randn_like(tensor) if seed and tensor.is_floating_point() else tensor.clone()
