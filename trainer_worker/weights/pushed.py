"""The push under way: what is added to the weights, part by part."""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainer_worker.weights.flat import FlatParameters, local, part_of
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
        self._share = 0.0  # of it, that is added at once
        self.active = False  # whether there is a push under way
        self._exact: tuple[list[Tensor], list[Tensor]] = ([], [])  # what is added to, and what is added
        self._narrow: list[tuple[Tensor, Tensor, Tensor]] = []  # and what of earlier pushes is still to be added
        self._rests: dict[tuple[int, int], Tensor] = {}  # by place of the parameter, and number of the copy
        self._moving: list[tuple[nn.Parameter, torch.Size]] = []
        self._copies: list[str] | None = None

    @torch.no_grad()
    def set(self, displacement: Tensor | None, *, parts: int) -> None:
        """Push by `displacement` (n,) float32, None on a rank that is given its part, in so many calls of `add`, on every rank."""
        self._push, self._exact, self._narrow, self._share = [], ([], []), [], 1 / parts  # the last one's memory goes first
        for piece in self._flat.pieces:
            values = None if displacement is None else displacement[piece.start : piece.stop].view(piece.parameter.shape)
            self._push.append(part_of(values, piece.parameter).to(_at_least_float32(piece.parameter)))
        self._prepare()

    def clear(self) -> None:
        self.active = False

    @torch.no_grad()
    def add(self) -> None:
        if not self.active:
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
        """The push under way, flat (local n,), or zeros; its share that a part is; what narrow weights have still to take up."""
        pushes = self._pushes()
        rests = [self._rests.get((index, 0), torch.zeros_like(pushes[index])).flatten().cpu() for index in self._narrow_pieces]
        push = torch.cat([push.flatten().cpu() for push in pushes])
        rest = torch.cat([torch.zeros(0), *rests])
        return {"push": push if self.active else torch.zeros_like(push), "share": self._share, "rest": rest}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`."""
        places = self._pushes()
        parts = torch.split(state["push"], [place.numel() for place in places])
        self._push = [part.view(place.shape).to(place, copy=True) for place, part in zip(places, parts, strict=True)]
        self._share = float(state["share"])
        rests = torch.split(state["rest"], [places[index].numel() for index in self._narrow_pieces])
        for index, rest in zip(self._narrow_pieces, rests, strict=True):
            self._rests[index, 0] = rest.view(places[index].shape).to(places[index], copy=True)
        self._moving, self._copies = [], None  # to be found at the next step: the optimizer's state may be loaded later
        self.active = bool(state["push"].any())

    @property
    def _narrow_pieces(self) -> list[int]:
        return [index for index, piece in enumerate(self._flat.pieces) if piece.parameter.element_size() < 4]

    def _pushes(self) -> list[Tensor]:
        """The push of each parameter; zeros before the first."""
        places = [local(parameter) for parameter in self._flat.parameters]
        return self._push or [torch.zeros_like(each, dtype=_at_least_float32(each)) for each in places]

    def _prepare(self) -> None:
        """Pair each push with what it is added to."""
        self._moving, self._exact, self._narrow, self.active = [], ([], []), [], True
        states = [state for optimizer in self._optimizers for state in states_of(optimizer)]
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
    for state in (state for optimizer in optimizers for state in states_of(optimizer)):
        for parameter in parameters:
            weights = local(parameter).float()
            for name, value in state.get(parameter, {}).items():
                if isinstance(name, str) and _is_copy(value, parameter):
                    apart[name] += float((local(value).float() - weights).square().sum())
                    norms[name] += float(weights.square().sum())
    known = set().union(*map(kept_weights, optimizers))
    return sorted(name for name, distance in apart.items() if name in known or distance < TRACKS * norms[name])


def _at_least_float32(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _is_copy(value: Any, parameter: Tensor) -> bool:
    alike = isinstance(value, Tensor) and value.is_floating_point() and value.shape == parameter.shape and value.dim() > 0
    return alike and local(value).data_ptr() != local(parameter).data_ptr()  # SAM keeps the very memory of the weights
