"""The push under way: what is added to the weights after each optimizer step."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainer_worker.weights.flat import FlatParameters
from trainer_worker.weights.optimizers import state_of
from trainer_worker.weights.sharded import local, part_of

log = logging.getLogger(__name__)

TRACKS: Final = 0.1
"""A tensor of an optimizer's state is another copy of the weights if it differs by less than this share of their squared norm."""


class PushedWeights:
    """Adds a push to the weights, and to what an optimizer keeps of them itself: float32 master copies, slow or averaged weights.

    Weights narrower than float32 take a push up once it has grown to their last digit, so that none is lost to rounding.

    Args:
        flat: the trained parameters.
        optimizers: that train them.
    """

    def __init__(self, flat: FlatParameters, optimizers: Sequence[Optimizer]) -> None:
        self._flat, self._optimizers = flat, optimizers
        self._push: list[Tensor] = []  # one step's share, of each parameter (of its local part)
        self._exact: tuple[list[Tensor], list[Tensor]] = ([], [])  # what is added to, and what is added
        self._narrow: list[tuple[Tensor, Tensor]] = []
        self._rests: dict[int, Tensor] = {}  # by parameter, what of its pushes is still to be added
        self._moving: list[nn.Parameter] = []
        self._copies: list[str] | None = None

    @property
    def active(self) -> bool:
        """Is there a push under way?"""
        return bool(self._push)

    @torch.no_grad()
    def set(self, displacement: Tensor | None, *, steps: int) -> None:
        """Push by `displacement` over the next steps. Of a model that is split over ranks, every rank must call.

        Args:
            displacement: (n,) float32; None on a rank that is given its part.
            steps: among which it is divided.
        """
        self._push = []
        for piece in self._flat.pieces:
            values = None if displacement is None else displacement[piece.start : piece.stop].view(piece.parameter.shape)
            mine = part_of(values, piece.parameter)
            # on the CPU it may be the very memory it came in, which the next forecast overwrites
            self._push.append(mine.to(_push_dtype(piece.parameter)) / steps)
        self._prepare()

    def clear(self) -> None:
        """End the push under way."""
        self._push, self._exact, self._narrow, self._moving = [], ([], []), [], []

    @torch.no_grad()
    def add(self) -> None:
        """Add one step's share."""
        if not self._push:
            return
        if not all(parameter.requires_grad for parameter in self._moving):
            self._prepare()  # one has been frozen since
        targets, pushes = self._exact
        if targets:
            torch._foreach_add_(targets, pushes)
        for target, push in self._narrow:
            rest = self._rests.setdefault(id(target), torch.zeros_like(push)).add_(push)
            wanted = target.to(push.dtype).add_(rest)
            target.copy_(wanted)
            torch.sub(wanted, target, out=rest)

    @torch.no_grad()
    def displace(self, displacement: Tensor | None) -> None:
        """Add all of a displacement (n,) at once."""
        self.set(displacement, steps=1)
        self.add()
        self.clear()

    def state(self) -> Tensor:
        """One step's share, flat (local n,) float32; zeros if there is no push."""
        if self._push:
            return torch.cat([push.flatten().to("cpu", torch.float32) for push in self._push])
        return torch.zeros(sum(local(parameter).numel() for parameter in self._flat.parameters))

    def load_state(self, state: Tensor) -> None:
        """Go on from `state()`."""
        self._rests.clear()
        if not bool(state.any()):
            self.clear()
            return
        places = [local(parameter) for parameter in self._flat.parameters]
        parts = torch.split(state, [place.numel() for place in places])
        self._push = [
            part.view(place.shape).to(place.device, _push_dtype(place), copy=True)
            for part, place in zip(parts, places, strict=True)
        ]
        self._prepare()

    def _prepare(self) -> None:
        """Pair each push with what it is added to."""
        pairs: list[tuple[Tensor, Tensor]] = []
        self._moving = []
        for piece, push in zip(self._flat.pieces, self._push, strict=True):
            if not piece.parameter.requires_grad:
                continue
            self._moving.append(piece.parameter)
            pairs.append((local(piece.parameter), push))
            pairs.extend((copy, push.to(copy.device)) for copy in self._copies_of(piece.parameter))
        wide = [(target, push) for target, push in pairs if target.element_size() >= push.element_size()]
        self._narrow = [(target, push) for target, push in pairs if target.element_size() < push.element_size()]
        self._exact = ([target.detach() for target, _ in wide], [push.to(target.dtype) for target, push in wide])

    def _copies_of(self, parameter: nn.Parameter) -> Iterator[Tensor]:
        if self._copies is None:
            self._copies = copies_of_weights(self._flat.parameters, self._optimizers)
            if self._copies:
                log.info("the optimizer keeps weights of its own, which are pushed too: %s", ", ".join(self._copies))
        if not self._copies:
            return
        for optimizer in self._optimizers:
            for name, value in state_of(optimizer).get(parameter, {}).items():
                if name in self._copies and _alike(value, parameter):
                    yield local(value)


@torch.no_grad()
def copies_of_weights(parameters: Sequence[nn.Parameter], optimizers: Sequence[Optimizer]) -> list[str]:
    """The entries of the optimizers' state that are weights themselves: of the parameters' shapes, and close to them.

    Such are float32 master copies, `z` of schedule-free, the slow weights of Lookahead, averages of weights.
    """
    apart: dict[str, float] = {}
    norms: dict[str, float] = {}
    for optimizer in optimizers:
        for parameter in parameters:
            weights = local(parameter).float()
            for name, value in state_of(optimizer).get(parameter, {}).items():
                if isinstance(name, str) and _alike(value, parameter):
                    apart[name] = apart.get(name, 0.0) + float((local(value).float() - weights).square().sum())
                    norms[name] = norms.get(name, 0.0) + float(weights.square().sum())
    return sorted(name for name, distance in apart.items() if distance < TRACKS * norms[name])


def _alike(value: Any, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.shape == parameter.shape and value.dim() > 0


def _push_dtype(parameter: Tensor) -> torch.dtype:
    return torch.promote_types(parameter.dtype, torch.float32)
