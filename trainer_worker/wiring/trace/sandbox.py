"""Where a user's module is run for its wiring alone: on a copy, on the CPU, with no trace left in it or in the random state."""

import copy
import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

LARGEST_COPY = 2 * 2**30
"""Bytes of parameters beyond which only their shapes are copied, to the meta device: what depends on values then cannot be run."""


def copy_of(model: nn.Module) -> tuple[nn.Module, dict[str, str]]:
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
