"""The push under way: what is added to the weights, part by part."""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainer_worker.weights.flat import FlatParameters, gathered, local, part_of
from trainer_worker.weights.optimizers import kept_weights, states_of

log = logging.getLogger(__name__)

TRACKS: Final = 0.1  # share of the weights' squared norm by which a tensor may differ from them and still be a copy of them


class PushedWeights:
    """Adds a push to the weights, and to what an optimizer keeps of them itself: float32 master copies, slow or averaged weights.
    Weights narrower than float32 take a push up once it has grown to their last digit, so that none is lost to rounding.
    """

    def __init__(self, flat: FlatParameters, optimizers: Sequence[Optimizer]) -> None:
        self._flat, self._optimizers = flat, optimizers
        self._push: list[Tensor] = []  # all of it, for each parameter (its local part); only read: others hold it, too
        self._share = 0.0  # of it, that is added at once; 0 if no push is under way
        self._exact: tuple[list[Tensor], list[Tensor]] = ([], [])  # what is added to, and what is added
        self._narrow: list[tuple[Tensor, Tensor, Tensor]] = []  # and what of earlier pushes is still to be added
        self._rests: dict[tuple[int, int], Tensor] = {}  # by place of the parameter, and number of the copy
        self._moving: list[tuple[nn.Parameter, torch.Size]] = []
        self._copies: list[str] | None = None

    @torch.no_grad()
    def set(self, displacement: Tensor | None, *, parts: int) -> None:
        """Push by `displacement` (n,) float32, None on a rank that is given its part, in so many calls of `add`, on every rank."""
        self._push, self._exact, self._narrow, self._share = [], ([], []), [], 1 / parts  # the last one's memory goes first
        self._push = _parts(displacement, self._flat.parameters)
        self._prepare()

    def clear(self) -> None:
        self._share = 0.0

    @torch.no_grad()
    def add(self) -> None:
        if not self._share:
            return
        if not self._moving or not all(each.requires_grad and each.shape == shape for each, shape in self._moving):
            self._prepare()  # the push is that of a checkpoint, or a parameter was frozen or got another shape since
        targets, pushes = self._exact
        if targets:
            torch._foreach_add_(targets, pushes, alpha=self._share)
        for target, push, rest in self._narrow:
            wanted = target.to(push.dtype).add_(rest.add_(push, alpha=self._share))
            target.copy_(wanted)
            torch.sub(wanted, target, out=rest)

    @torch.no_grad()
    def displace(self, displacement: Tensor | None) -> None:
        """Add all of a displacement (n,) at once."""
        self.set(displacement, parts=1)
        self.add()
        self.clear()

    def state_dict(self) -> dict[str, Any]:
        """The share of the push that a part is, 0 if none is under way; the push, flat (n,); what narrow weights have still to take
        up. Of a model that is split over ranks rank 0 has the last two, of all of it; every rank must call.
        """
        parameters, narrow = self._flat.parameters, self._narrow_places
        pushes = self._push or [torch.zeros_like(local(each), dtype=_at_least_float32(each)) for each in parameters]
        rests = [self._rests.get((index, 0), torch.zeros_like(pushes[index])) for index in narrow]
        vectors = {"push": _whole(pushes, parameters), "rest": _whole(rests, [parameters[index] for index in narrow])}
        return {"share": self._share, **{key: each for key, each in vectors.items() if each is not None}}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`."""
        push, rest = (state[key].clone() if key in state else None for key in ("push", "rest"))
        self._push, self._share = _parts(push, self._flat.parameters), float(state["share"])
        rests = _parts(rest, [self._flat.parameters[index] for index in self._narrow_places])
        self._rests |= zip(((index, 0) for index in self._narrow_places), rests, strict=True)
        self._moving, self._copies = [], None  # to be found at the next step: the optimizer's state may be loaded later

    @property
    def _narrow_places(self) -> list[int]:
        return [index for index, parameter in enumerate(self._flat.parameters) if parameter.element_size() < 4]

    def _prepare(self) -> None:
        """Pair each push with what it is added to."""
        self._moving, self._exact, self._narrow = [], ([], []), []
        states = states_of(self._optimizers)
        if self._copies is None:
            self._copies = copies_of_weights(self._flat.parameters, self._optimizers)
            if self._copies:
                log.info("the optimizer keeps copies of the weights, which are pushed as well: %s", ", ".join(self._copies))
        for index, (parameter, push) in enumerate(zip(self._flat.parameters, self._push, strict=True)):
            if not parameter.requires_grad or local(parameter).shape != push.shape:
                continue
            self._moving.append((parameter, parameter.shape))
            kept = (item for state in states if self._copies for item in state.get(parameter, {}).items())
            copies = (value for name, value in kept if name in self._copies and _is_copy(value, parameter))
            for number, target in enumerate(map(local, (parameter, *copies))):
                added = push.to(target.device)
                if target.element_size() >= push.element_size():
                    self._exact[0].append(target)
                    self._exact[1].append(added.to(target.dtype))
                else:
                    rest = self._rests.setdefault((index, number), torch.zeros_like(added))
                    self._narrow.append((target, added, rest))


@torch.no_grad()
def copies_of_weights(parameters: Sequence[nn.Parameter], optimizers: Sequence[Optimizer]) -> list[str]:
    """Entries of the optimizers' state that are weights, by shape and distance: master copies, slow or averaged weights, `z`."""
    apart, norms = defaultdict[str, float](float), defaultdict[str, float](float)
    for state in states_of(optimizers):
        for parameter in parameters:
            weights = local(parameter).float()
            for name, value in state.get(parameter, {}).items():
                if isinstance(name, str) and _is_copy(value, parameter):
                    apart[name] += float((local(value).float() - weights).square().sum())
                    norms[name] += float(weights.square().sum())
    known = set().union(*map(kept_weights, optimizers))
    return sorted(name for name, distance in apart.items() if name in known or distance < TRACKS * norms[name])


def _parts(vector: Tensor | None, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """This rank's parts of what a vector has for each of these parameters; None on a rank that is given them."""
    sizes = [parameter.numel() for parameter in parameters]
    whole = [None] * len(sizes) if vector is None else torch.split(vector, sizes)
    return [part_of(values, like).to(_at_least_float32(like)) for values, like in zip(whole, parameters, strict=True)]


def _whole(parts: Sequence[Tensor], parameters: Sequence[nn.Parameter]) -> Tensor | None:
    """The vector that `_parts` takes, on the host; None where another rank has it, or it is empty."""
    gather = (gathered(part, like) for part, like in zip(parts, parameters, strict=True))
    whole = [values.flatten() for values in gather if values is not None]
    return torch.cat(whole) if whole else None


def _at_least_float32(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _is_copy(value: Any, parameter: Tensor) -> bool:
    alike = isinstance(value, Tensor) and value.is_floating_point() and value.shape == parameter.shape and value.dim() > 0
    return alike and local(value).data_ptr() != local(parameter).data_ptr()  # SAM keeps the very memory of the weights
