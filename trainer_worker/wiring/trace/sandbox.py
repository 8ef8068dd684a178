"""Where a user's module is run for its wiring alone: on a copy, on the CPU, at bounded cost, and nothing of it is left behind."""

import copy
import math
import random
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

LARGEST_COPY = 2 * 2**30  # bytes of parameters; beyond, shapes alone are copied, and what depends on values cannot be run
SECONDS = 20.0  # processor time for all runs of one module: how it is wired must not depend on what else the machine does
OPERATIONS = 2**35  # floating-point operations one operator may take: a second or so on one core
_ENLARGING = ("upsample", "repeat", "constant_pad", "reflection_pad", "replication_pad")  # whose results may outgrow all inputs


def copy_of(model: nn.Module) -> tuple[nn.Module, list[Tensor]]:
    """A copy that shares nothing with the model, on the CPU unless it has shapes only; its parameters in the model's order."""
    inner = model
    for attribute in ("_orig_mod", "module"):  # compiled, data parallel
        wrapped = getattr(inner, attribute, None)
        inner = wrapped if isinstance(wrapped, nn.Module) and len(list(inner.children())) == 1 else inner
    if [*map(id, inner.parameters())] != [*map(id, model.parameters())]:
        inner = model
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
    by_name = dict(copied.named_parameters(remove_duplicate=False))  # a module may copy itself in another order
    return copied, [by_name[name] for name, _ in inner.named_parameters()]


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


@contextmanager
def undisturbed() -> Iterator[None]:
    """Whatever the caller's modes: no gradients, the CPU, no fused kernels that hide what happens; random states as they were."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002  (models draw from the global state; so it must be kept)
    fast_attention = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        for context in (
            torch.inference_mode(mode=False),
            torch.no_grad(),
            torch.autocast("cpu", enabled=False),
            torch.random.fork_rng(devices=[]),
            torch.backends.mkldnn.flags(enabled=False),
            sdpa_kernel(SDPBackend.MATH),
            # compiled parts run as they were written; while the compiler is not loaded there are none
            torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext(),
            torch.device("cpu") if torch.empty(0).device.type != "cpu" else nullcontext(),  # get_default_device can raise in 2.9
        ):
            stack.enter_context(context)
        torch.backends.mha.set_fastpath_enabled(False)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        torch.manual_seed(0)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_attention)
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002


class TooCostly(Exception):
    """Running the module costs more than its wiring is worth."""


class Limits(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves __init_subclass__ untyped
    """Stops what runs inside it before an operator that puts out too much or takes too long, and after the deadline."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here; importing the compiler to say so would take seconds."""
        return False

    def __init__(self, *, elements: int, deadline: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.elements, self.deadline = elements, deadline

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.call(func, args, kwargs or {})

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one operator. Raises `TooCostly`: it is too large, or too late."""
        if time.thread_time() > self.deadline:
            raise TooCostly(f"stopped after {SECONDS:.0f} s")
        elements, operations = _foreseen(func, args, kwargs)
        if operations > OPERATIONS:
            raise TooCostly(f"{func} takes {operations:.0e} operations, more than {OPERATIONS:.0e}")
        if elements <= self.elements:
            out = func(*args, **kwargs)
            elements = _stored(out)
        if elements > self.elements:
            raise TooCostly(f"{func} returns {elements:,} elements, more than {self.elements:,}")
        return out


def _foreseen(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, int]:
    """Elements an operator will put out and operations it will take, where its inputs may be small and these large."""
    count = flop_registry.get(func.overloadpacket)
    if count is not None or str(func.overloadpacket).removeprefix("aten.").lstrip("_").startswith(_ENLARGING):
        shapes = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), args)
        out = func(*shapes, **kwargs)
        return sum(leaf.numel() for leaf in tree_leaves(out)), count(*shapes, **kwargs, out_val=out) if count else 0
    if torch.Tag.pointwise in func.tags:
        sizes = [value.shape for value in args if isinstance(value, Tensor)]
        return math.prod(max(same) for same in zip_longest(*(reversed(shape) for shape in sizes), fillvalue=1)), 0
    return 0, 0


def _stored(out: Any) -> int:
    """Elements of the largest tensor, as it is held in memory: an expanded view holds none of its own."""
    tensors = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
    sizes = (zip(tensor.shape, tensor.stride(), strict=True) for tensor in tensors)
    return max((math.prod(size for size, stride in each if stride) for each in sizes), default=0)
