"""What running a module for its wiring may cost: a guessed input may be far larger than the true ones."""

import math
import time
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

SECONDS = 20.0
"""Time for all runs of one module."""

GUESSED_ELEMENTS, GIVEN_ELEMENTS = 2**24, 2**27
"""Largest tensor an operator may put out, with guessed and with given inputs; the largest parameter's size is always allowed."""

OPERATIONS = 2**35
"""Floating-point operations one operator may take: a second or so on one core."""


_ENLARGING = ("upsample", "repeat", "constant_pad", "reflection_pad", "replication_pad")
"""Operators whose result may be larger than all that goes in, as their other arguments say."""


class TooCostly(Exception):
    """Running the module costs more than its wiring is worth."""


class Limits(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves __init_subclass__ untyped
    """Stops whatever runs inside it before an operator that is too large, and after the deadline.

    Args:
        elements: of the largest tensor an operator may put out.
        deadline: `time.monotonic()` from which on nothing runs.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here; importing the compiler to say so would take seconds."""
        return False

    def __init__(self, *, elements: int, deadline: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.elements = elements
        self.deadline = deadline

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.call(func, args, kwargs or {})

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one operator.

        Raises:
            TooCostly: it is too large, or too late.
        """
        if time.monotonic() > self.deadline:
            raise TooCostly(f"stopped after {SECONDS:.0f} s")
        elements, operations = _foreseen(func, args, kwargs)
        if operations > OPERATIONS:
            raise TooCostly(f"{_name(func)} takes {operations:.0e} operations, more than {OPERATIONS:.0e}")
        self._check(func, elements)
        out = func(*args, **kwargs)
        self._check(func, max((_stored(leaf) for leaf in tree_leaves(out) if isinstance(leaf, Tensor)), default=0))
        return out

    def _check(self, func: Any, elements: int) -> None:
        if elements > self.elements:
            raise TooCostly(f"{_name(func)} returns {elements:,} elements, more than {self.elements:,}")


def _foreseen(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, int]:
    """Elements an operator will put out and operations it will take, where its inputs may be small and these large."""
    name = _name(func)
    if name in {"aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm"}:
        left, right = [value for value in args if isinstance(value, Tensor)][-2:]
        elements = left.numel() // max(1, left.shape[-1]) * right.shape[-1]
        return elements, 2 * elements * left.shape[-1]
    if name in {"aten::convolution", "aten::_convolution"}:
        return _convolution(args)
    if name.removeprefix("aten::").lstrip("_").startswith(_ENLARGING):
        shapes = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), args)
        return sum(leaf.numel() for leaf in tree_leaves(func(*shapes, **kwargs))), 0
    if torch.Tag.pointwise in func.tags:
        sizes = [value.shape for value in args if isinstance(value, Tensor)]
        return math.prod(max(same) for same in zip_longest(*(reversed(shape) for shape in sizes), fillvalue=1)), 0
    return 0, 0


def _convolution(args: tuple[Any, ...]) -> tuple[int, int]:
    inputs, weight, _, stride, padding, dilation, transposed, output_padding, groups = args[:9]
    spatial = []
    for dim, size in enumerate(inputs.shape[2:]):
        step, pad, reach = (values[dim % len(values)] for values in (stride, padding, dilation))
        reach *= weight.shape[2 + dim] - 1
        extra = output_padding[dim % len(output_padding)]
        spatial.append((size - 1) * step - 2 * pad + reach + extra + 1 if transposed else (size + 2 * pad - reach - 1) // step + 1)
    channels = weight.shape[1] * groups if transposed else weight.shape[0]
    elements = inputs.shape[0] * channels * math.prod(spatial)
    return elements, 2 * elements * (inputs.shape[1] // groups) * math.prod(weight.shape[2:])


def _name(func: Any) -> str:
    return str(func._schema.name)  # noqa: SLF001  (an operator says only there what it is called)


def _stored(tensor: Tensor) -> int:
    """Elements held in memory: an expanded view holds none of its own."""
    return math.prod(size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
