"""Networks and inputs that a command line names."""

import inspect
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainer_worker.wiring import WiringReport, describe


def describe_module(place: str, *, inputs: str | None) -> WiringReport:
    """How the network at `place` is wired: its trained parameters; all of them if all are frozen. The place is a network, or a
    callable that gives one, as `package.module:callable` in the working directory or installed. Raises `ValueError`: it is not;
    `BadWiring`: there is nothing to forecast.
    """
    model = _load(place)
    model = model if isinstance(model, nn.Module) else _call(model, place)
    if not isinstance(model, nn.Module):
        raise ValueError(f"{place} gives a {type(model).__name__}, not a torch.nn.Module")  # noqa: TRY004 -- the value is at fault
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return describe(model, None if inputs is None else load_inputs(inputs), parameters=trained or None)


def load_inputs(text: str) -> Any:
    """Example inputs: shapes (`2x3x32x32`, `2x16:int64,2x16:bool`), or `package.module:callable`. Raises `ValueError`: neither."""
    parts = [re.fullmatch(r"(\d+(?:x\d+)*)(?::(\w+))?", part.strip()) for part in text.split(",")]
    if not all(parts):
        return _call(_load(text), text)
    tensors = []
    for shape, dtype in (part.groups("float32") for part in parts if part):
        kind = getattr(torch, dtype, None)
        if not isinstance(kind, torch.dtype):
            raise ValueError(f"{dtype!r} is not a dtype of torch: write e.g. 2x16:int64")  # noqa: TRY004 -- the value is at fault
        sizes = [int(size) for size in shape.split("x")]
        random = kind.is_floating_point or kind.is_complex
        tensors.append(torch.randn(sizes).to(kind) if random else torch.zeros(sizes, dtype=kind))
    return tuple(tensors)


def _load(place: str) -> Any:
    name, colon, attribute = place.partition(":")
    if not (name and colon and attribute):
        raise ValueError(f"{place!r} is not of the form MODULE:CALLABLE, e.g. mypackage.models:build")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        return getattr(import_module(name), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{place}: {error}") from None


def _call(found: Any, place: str) -> Any:
    try:
        inspect.signature(found).bind()
    except TypeError as error:
        raise ValueError(f"{place} cannot be called without arguments: {error}") from None
    return found()
