"""The state of a run at one moment, kept so that a jump can be undone exactly."""

import copy
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from trainer_worker.errors import BadArgument


class Stateful(Protocol):
    """Anything whose state can be taken and given back: a learning-rate scheduler, a `GradScaler`, a sampler."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...


class KeptState:
    """Keeps weights, optimizer state, buffers and random states; costs as much memory again as those take.

    Learning rates and other hyperparameters of the optimizer go back only together with a scheduler in `also`: without it a
    schedule would fall behind the loop that drives it.

    Weights are those of every parameter the optimizer holds at the time, but for those that are frozen and that it never stepped: a
    backbone would take as much memory again, for nothing.

    Args:
        model: whose buffers to keep, those it has at the time.
        optimizer: whose parameters to keep, and its state of them.
        also: further objects to keep the state of.
    """

    def __init__(self, *, model: nn.Module, optimizer: Optimizer, also: Sequence[Stateful] = ()) -> None:
        for index, thing in enumerate(also):
            if not (callable(getattr(thing, "state_dict", None)) and callable(getattr(thing, "load_state_dict", None))):
                raise BadArgument(
                    "guard", f"also[{index}] is a {type(thing).__name__}, which has no state_dict and load_state_dict"
                )
        self._model, self._optimizer = model, optimizer
        self._also = list(also)
        self._scheduled = any(isinstance(thing, LRScheduler) for thing in also)
        self._kept: dict[str, Any] | None = None

    @torch.no_grad()
    def keep(self) -> None:
        """Take the state as it is now; memory of an earlier one is used again."""
        old: dict[str, Any] = self._kept or {"parameters": {}, "buffers": {}}
        groups = [{name: value for name, value in group.items() if name != "params"} for group in self._optimizer.param_groups]
        self._kept = {
            "parameters": {
                place: self._one(parameter, old["parameters"].get(place, {"state": {}}))
                for place, parameter in self._parameters()
                if parameter.requires_grad or parameter in state_of(self._optimizer)
            },
            "buffers": {name: _copy(buffer, old["buffers"].get(name)) for name, buffer in self._buffers()},
            "groups": copy.deepcopy(groups) if self._scheduled else [],
            "also": [copy.deepcopy(thing.state_dict()) for thing in self._also],
            "random": random_states(),
        }

    @torch.no_grad()
    def restore(self) -> None:
        """Make everything as it was, bit for bit, in the same tensors."""
        assert self._kept is not None
        for place, parameter in self._parameters():
            if (kept := self._kept["parameters"].get(place)) is None:
                continue
            parameter.copy_(kept["weights"])
            state = state_of(self._optimizer)[parameter]
            for name in state.keys() - kept["state"].keys():
                del state[name]
            for name, value in kept["state"].items():
                state[name] = _put_back(value, state.get(name), device=None if name == "step" else parameter.device)
            if not state:
                del state_of(self._optimizer)[parameter]
        for name, kept in self._kept["buffers"].items():
            path, _, own = name.rpartition(".")
            module = self._model.get_submodule(path)
            buffer = getattr(module, own)
            setattr(module, own, _put_back(kept, buffer, device=buffer.device if isinstance(buffer, Tensor) else None))
        for group, kept in zip(self._optimizer.param_groups, self._kept["groups"], strict=False):
            group.update(copy.deepcopy(kept))
        for thing, kept in zip(self._also, self._kept["also"], strict=True):
            thing.load_state_dict(copy.deepcopy(kept))
        restore_random_states(self._kept["random"])

    def _one(self, parameter: nn.Parameter, into: Mapping[str, Any]) -> dict[str, Any]:
        state = state_of(self._optimizer).get(parameter, {})
        return {
            "weights": _copy(parameter, into.get("weights")),
            "state": {name: _copy(value, into["state"].get(name)) for name, value in state.items()},
        }

    def _parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The optimizer's, each by its place: groups may be added to it."""
        parameters = chain.from_iterable(group["params"] for group in self._optimizer.param_groups)
        return ((str(place), parameter) for place, parameter in enumerate(parameters))

    def _buffers(self) -> Iterator[tuple[str, Tensor]]:
        """By name: `forward` may put another tensor in a buffer's place, and what was one tensor may have become two."""
        return self._model.named_buffers(remove_duplicate=False)

    def state_dict(self) -> dict[str, Any]:
        """What is kept, as plain values and tensors of its own."""
        return copy.deepcopy(self._kept) if self._kept is not None else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Keep what `state_dict` gave.

        Raises:
            BadArgument: it has the state of more or fewer other objects.
        """
        if state and len(state["also"]) != len(self._also):
            detail = f"was saved in a trial of {len(state['also'])} averages and Guard.also in all, this run has {len(self._also)}"
            raise BadArgument("state", detail)
        self._kept = copy.deepcopy(dict(state)) if state else None


def state_of(optimizer: Optimizer) -> dict[Tensor, Any]:
    """Its state by parameter; a `ZeroRedundancyOptimizer` has none but in the optimizer it wraps."""
    inside = getattr(optimizer, "optim", None)
    return (inside if isinstance(inside, Optimizer) else optimizer).state


def _copy(value: Any, into: Any) -> Any:
    """A copy of `value`; tensors are copied into `into` if that is one like it."""
    if not isinstance(value, Tensor):
        return copy.deepcopy(value)
    fits = isinstance(into, Tensor) and (into.shape, into.dtype, into.device) == (value.shape, value.dtype, value.device)
    return into.copy_(value) if fits else value.detach().clone()


def _put_back(kept: Any, into: Any, *, device: torch.device | None) -> Any:
    """What was kept, maybe by another process and on its device: written to the tensor `into` if that is one like it, or a copy.

    Args:
        kept: any value.
        into: the present one; None if there is none.
        device: of a copy; None to leave it where it was kept. (An optimizer's count of steps is often on the CPU.)
    """
    if not isinstance(kept, Tensor):
        return copy.deepcopy(kept)
    if isinstance(into, Tensor) and (into.shape, into.dtype) == (kept.shape, kept.dtype) and not _is_expanded(into):
        return into.copy_(kept)
    return kept.to(device, copy=True)


def _is_expanded(tensor: Tensor) -> bool:
    """Whether elements share their memory: torch does not write to such a tensor."""
    return tensor.layout == torch.strided and 0 in tensor.stride()


def random_states() -> dict[str, Any]:
    """The random states of torch, its CUDA devices, Python and numpy (if it is in use), as plain values."""
    states: dict[str, Any] = {"torch": torch.get_rng_state(), "python": random.getstate()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    if "numpy" in sys.modules:
        import numpy as np

        name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002  # the legacy state is the global one
        states["numpy"] = [name, torch.from_numpy(np.asarray(keys).astype("int64")), *rest]
    return states


def restore_random_states(states: Mapping[str, Any]) -> None:
    """Go back to `random_states()`, which may have been loaded to another device."""
    torch.set_rng_state(states["torch"].cpu())
    random.setstate(states["python"])
    if "cuda" in states:
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])
    if "numpy" in states:
        import numpy as np

        name, keys, *rest = states["numpy"]
        np.random.set_state((name, keys.cpu().numpy().astype("uint32"), *rest))  # noqa: NPY002
