"""Running a user's module for its wiring alone: on a copy, on the CPU, with no trace left in it or in the random state."""

import copy
import random
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves, tree_map_only

from protos.wiring import Parameter
from trainer_worker.wiring.trace import contraction, elementwise, layers, shapes  # noqa: F401  (they register the operators)
from trainer_worker.wiring.trace.inputs import guesses
from trainer_worker.wiring.trace.limits import GIVEN_ELEMENTS, GUESSED_ELEMENTS, SECONDS, Limits, TooCostly
from trainer_worker.wiring.trace.tracer import Tracer

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
PASSES, FRUITLESS = 8, 4
"""Forward passes tried while parameters remain unseen, and how many in a row that show nothing new end it.

Chance may route around parameters (experts, dropped layers).
"""

LARGEST_COPY = 2 * 2**30
"""Bytes of parameters beyond which only their shapes are copied, to the meta device: what depends on values then cannot be run."""

FEW, MANY_ELEMENTS = 4, 2**16
"""Of examples with so many elements only so many are run."""


@dataclass
class Seen:
    """What was seen of a model.

    Args:
        tracer: everything followed.
        part: for each parameter the path of the part of the model whose run showed it, "" for the whole.
        alone: parameters of single layers that could only be run by themselves.
        remarks: what went wrong, one sentence each.
        inputs: what the whole model was run with, None if only parts of it ran.
    """

    tracer: Tracer
    part: dict[str, str] = field(default_factory=dict)
    alone: set[str] = field(default_factory=set)
    remarks: list[str] = field(default_factory=list)
    inputs: str | None = None


def run(model: nn.Module, parameters: tuple[Parameter, ...], chosen: set[str], example_inputs: Any) -> Seen:
    """Run the model, or those parts of it that run, until every chosen parameter was seen at work.

    Args:
        model: the user's.
        parameters: all of its parameters, in order.
        chosen: names of those to be seen.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments; None to guess.
    """
    try:
        copied, names = _copy(model)
    except Exception as error:  # noqa: BLE001  (copying runs the user's code)
        return Seen(Tracer(list(model.parameters())), remarks=[f"the model cannot be copied, so it is not run: {_sentence(error)}"])
    tensors = dict(copied.named_parameters())
    result = Seen(Tracer([tensors[names[parameter.name]] for parameter in parameters]))
    given = None if example_inputs is None else _arguments(example_inputs, next(iter(tensors.values())).device)
    index = {id(tensors[names[parameter.name]]): number for number, parameter in enumerate(parameters)}
    _Visitor(result, parameters, chosen, index).visit(copied, "", given)
    return result


class _Visitor:
    """Runs a module; where it does not run, or leaves parameters unseen, its children."""

    def __init__(self, result: Seen, parameters: tuple[Parameter, ...], chosen: set[str], index: dict[int, int]) -> None:
        self._result = result
        self._tracer = result.tracer
        self._names = [parameter.name for parameter in parameters]
        self._sought = {number for number, item in enumerate(parameters) if item.name in chosen and item.shape and item.size}
        self._index = index
        self._largest = max(parameter.size for parameter in parameters)
        self._deadline = time.monotonic() + SECONDS

    def visit(self, module: nn.Module, path: str, given: Arguments | None = None) -> None:
        if self._tells(module, path) and self._unseen(module):
            self._run(module, path, given)
        for name, child in module.named_children():
            if self._unseen(child) and not self._late:
                self.visit(child, f"{path}.{name}".lstrip("."))

    @property
    def _late(self) -> bool:
        return time.monotonic() > self._deadline

    def _limits(self, elements: int) -> Limits:
        return Limits(elements=max(elements, self._largest), deadline=self._deadline)

    def _run(self, module: nn.Module, path: str, given: Arguments | None) -> None:
        if given is not None and self._run_given(module, path, given):
            return
        like = next((parameter for parameter in module.parameters() if parameter.is_floating_point()), next(module.parameters()))
        limits = self._limits(GUESSED_ELEMENTS)
        first = ""
        for guess in guesses(module):
            arguments = tree_map_only(Tensor, lambda tensor: _placed(tensor, like), guess)
            failure = _trial(module, arguments, limits) or self._passes(module, path, arguments, limits)
            if not failure:
                self._ran(path, f"guessed inputs {_described(arguments)}")
                return
            if not first or (TooCostly.__name__ in failure and TooCostly.__name__ not in first):
                first = failure
            if self._late:
                break
        why = f"no guess ran in {SECONDS:.0f} s" if self._late else first
        self._result.remarks.append(f"{path or 'the model'} could not be run with guessed inputs: {why}")

    def _run_given(self, module: nn.Module, path: str, given: Arguments) -> bool:
        limits = self._limits(GIVEN_ELEMENTS)
        few = _few_examples(given)
        if few is not None and not _trial(module, few, limits):
            given = few
        failure = self._passes(module, path, given, limits)
        if failure:
            self._result.remarks.append(f"the example inputs do not run: {failure}")
        else:
            self._ran(path, f"the given inputs {_described(given)}")
        return not failure

    def _ran(self, path: str, how: str) -> None:
        if not path:
            self._result.inputs = how

    def _passes(self, module: nn.Module, path: str, arguments: Arguments, limits: Limits) -> str:
        """Forward passes in evaluation mode, then in training mode while they show more of the parameters; the first failure."""
        fruitless = 0
        for number in range(PASSES):
            before = self._tracer.uses.count
            module.train(number % 2 == 1)
            failure = self._attempt(module, arguments, limits, seed=number)
            if failure:
                return failure if number == 0 else ""
            self._note(module, path)
            fruitless = fruitless + 1 if self._tracer.uses.count == before else 0
            if fruitless == FRUITLESS or not self._unseen(module):
                break
        return ""

    def _attempt(self, module: nn.Module, arguments: Arguments, limits: Limits, *, seed: int) -> str:
        state = self._tracer.begin(module.parameters(), limits)
        torch.manual_seed(seed)
        args, kwargs = tree_map_only(Tensor, lambda tensor: _redrawn(tensor, seed), arguments)
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):
                self._tracer.label_input(leaf)
        try:
            with self._tracer:
                module(*args, **kwargs)
        except Exception as error:  # noqa: BLE001  (it is the user's code, and may raise anything)
            self._tracer.roll_back(state)
            return _sentence(error)
        return ""

    def _note(self, module: nn.Module, path: str) -> None:
        single = path != "" and not list(module.children())
        for parameter in module.parameters():
            name = self._names[self._index[id(parameter)]]
            if self._tracer.uses.of[self._index[id(parameter)]] and name not in self._result.part:
                self._result.part[name] = path
                if single:
                    self._result.alone.add(name)

    def _unseen(self, module: nn.Module) -> bool:
        numbers = (self._index.get(id(parameter)) for parameter in module.parameters())
        return any(number in self._sought and not self._tracer.uses.of[number] for number in numbers if number is not None)

    @staticmethod
    def _tells(module: nn.Module, path: str) -> bool:
        """Running it may show something; a linear layer in a model that does not run says no more than its shapes do."""
        runs = getattr(module.forward, "__name__", "") != "_forward_unimplemented"
        return runs and not (path and type(module) is nn.Linear)


def _few_examples(arguments: Arguments) -> Arguments | None:
    """The first examples of a large batch; None where the tensors do not agree on how many there are."""
    tensors = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]
    lengths = {len(tensor) if tensor.dim() else 0 for tensor in tensors}
    if len(lengths) != 1 or max(lengths) <= FEW or sum(tensor.numel() for tensor in tensors) < MANY_ELEMENTS:
        return None
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
    """Shapes and dtypes of the tensors, in order."""
    tensors = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]
    return ", ".join(f"{'x'.join(map(str, tensor.shape)) or 'scalar'} {str(tensor.dtype)[6:]}" for tensor in tensors) or "none"


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def _placed(tensor: Tensor, like: Tensor) -> Tensor:
    """A guessed input where the parameters are, in their precision."""
    return tensor.to(like.device, like.dtype) if tensor.is_floating_point() else tensor.to(like.device)


def _redrawn(tensor: Tensor, seed: int) -> Tensor:
    """The example itself at first; then other random features, so that other paths are taken."""
    if seed == 0 or not tensor.is_floating_point():
        return tensor.clone()
    return torch.randn_like(tensor)


def _copy(model: nn.Module) -> tuple[nn.Module, dict[str, str]]:
    """A copy that shares nothing with the model, on the CPU unless it has shapes only; how it calls the model's parameters.

    A copy of a very large model has shapes only.
    """
    inner = model
    for attribute in ("_orig_mod", "module"):  # compiled, data parallel
        wrapped = getattr(inner, attribute, None)
        inner = wrapped if isinstance(wrapped, nn.Module) and len(list(inner.children())) == 1 else inner
    inside = {id(parameter): name for name, parameter in inner.named_parameters()}
    names = {name: inside[id(parameter)] for name, parameter in model.named_parameters() if id(parameter) in inside}
    if len(names) < len(list(model.parameters())):
        inner, names = model, {name: name for name, _ in model.named_parameters()}
    held = sum(parameter.numel() * parameter.element_size() for parameter in inner.parameters())
    shapes_only = held > LARGEST_COPY or any(parameter.is_meta for parameter in inner.parameters())
    memo: dict[int, Any] = {}
    for parameter in inner.parameters():
        values = torch.empty_like(parameter, device="meta") if shapes_only else parameter.detach().cpu().clone()
        memo[id(parameter)] = nn.Parameter(values, requires_grad=parameter.requires_grad)
    try:
        copied = copy.deepcopy(inner, dict(memo))
    except Exception:  # noqa: BLE001  (locks, loggers, open files: copying runs the user's code)
        copied = copy.deepcopy(inner, {**memo, **_uncopyable(inner, memo)})
    if not shapes_only:
        copied.cpu()
    elif held > LARGEST_COPY:
        copied.to("meta")  # buffers as well
    return copied, names


def _uncopyable(model: nn.Module, memo: dict[int, Any]) -> dict[int, Any]:
    """Attributes that cannot be copied, by identity; the copy shares them with the model."""
    shared = {}
    for module in model.modules():
        for name, value in vars(module).items():
            if name not in {"_parameters", "_buffers", "_modules"}:
                try:
                    copy.deepcopy(value, dict(memo))
                except Exception:  # noqa: BLE001
                    shared[id(value)] = value
    return shared


def _arguments(example_inputs: Any, device: torch.device) -> Arguments:
    moved = tree_map_only(Tensor, lambda tensor: tensor.detach().to(device), example_inputs)
    if isinstance(moved, dict):
        return (), moved
    return (tuple(moved) if isinstance(moved, (tuple, list)) else (moved,)), {}


@contextmanager
def undisturbed() -> Iterator[None]:
    """Whatever the caller's modes: no gradients, the CPU, no fused kernels that hide what happens; random states as they were."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002  (models draw from the global state; so it must be kept)
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        for context in (
            torch.inference_mode(mode=False),
            torch.no_grad(),
            torch.autocast("cpu", enabled=False),
            torch.random.fork_rng(devices=[]),
            torch.backends.mkldnn.flags(enabled=False),
            _plain_attention(),
            _uncompiled(),
        ):
            stack.enter_context(context)
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        torch.manual_seed(0)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002


def _uncompiled() -> AbstractContextManager[Any]:
    """Compiled parts of a model run as they were written; while the compiler is not loaded there are none."""
    loaded = "torch._dynamo" in sys.modules
    return torch.compiler.set_stance("force_eager") if loaded else nullcontext()


@contextmanager
def _plain_attention() -> Iterator[None]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
