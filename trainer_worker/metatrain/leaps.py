"""Training runs with jumps, for contexts that follow a jump; plain runs have none."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nowcast_server.forecasters.base import Forecaster
from protos.wiring import Wiring


@dataclass(frozen=True, slots=True)
class Leaps:
    """Jumps at the start of a run, one after each context; what follows the last is plain training.

    Args:
        stride: snapshots between two of a context.
        horizons: of each jump, in strides.
    """

    stride: int
    horizons: tuple[int, ...]


class Leaper:
    """Makes the jumps of `leaps` in every lane of a stack.

    Args:
        leaps: when and how far.
        forecaster: says where to.
        wiring: of the lanes' network.
    """

    def __init__(self, leaps: Leaps, forecaster: Forecaster, wiring: Wiring) -> None:
        if forecaster.context is None:
            raise ValueError(f"{forecaster.name} has no context of its own; nino and wnn have")
        self._forecaster, self._wiring = forecaster, wiring
        self._stride, self._horizons = leaps.stride, list(leaps.horizons)
        self._period = forecaster.context * leaps.stride
        self._context: list[Tensor] = []
        self._seen = 0

    def __call__(self, states: Tensor) -> Tensor | None:
        """After a snapshot of all lanes (lanes, n): where to go on from, if not from there."""
        if not self._horizons:
            return None
        self._seen += 1
        if self._seen % self._stride == 0:
            self._context.append(states.clone())
        if self._seen % self._period:
            return None
        contexts = torch.stack(self._context, dim=1)  # (lanes, context, n)
        horizon = self._horizons.pop(0)
        self._context.clear()
        return torch.stack([self._target(context, horizon) for context in contexts])

    def _target(self, context: Tensor, horizon: int) -> Tensor:
        if not context.isfinite().all():
            return context[-1]  # the lane has diverged, which ends no other
        return self._forecaster.forecast(self._wiring, context, (horizon,))[0]
