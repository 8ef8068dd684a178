"""What every forecaster is: one method, which checks its arguments and changes nothing."""

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from nowcast_server.interruption import interruptible_items
from nowcast_server.streams import own_stream
from protos.errors import BadRequest, BadValue
from protos.wiring import Wiring

CPU: Final = torch.device("cpu")
LEAST_CONTEXT = 2
PIECE: Final = 1 << 18  # weights that are looked at in one go, of all snapshots: few enough to stay in a cache
PASS_S = 4e-9  # a simple forecaster's work on one value of one snapshot, on a slow core
CUDA_LANES = 40  # as many cores is a GPU worth, at least

Horizons = tuple[int, ...]


def pieces(values: Tensor) -> Sequence[Tensor]:
    """Views of (n,) or (horizons, n), all of nearly one length."""
    return torch.tensor_split(values, math.ceil(values.shape[-1] / PIECE) or 1, dim=-1)


class Forecaster(ABC):
    """Forecasts weights from a context. Stateless: one instance serves any number of jobs and threads at once."""

    name: str

    context: int | None = None
    """Snapshots it needs; None for any number from 2."""

    max_horizon: int | None = None
    """The furthest horizon it can forecast, in intervals; None for any."""

    glide_horizon: int = 1
    """The horizon, in intervals, whose direction suits gliding."""

    max_slots: int | None = None
    """The most weights an edge may carry; None for any number."""

    weights_bytes: int = 0
    """Memory its weights take."""

    device: torch.device | None = None
    """Where it computes; None for wherever the snapshots lie."""

    def forecast(self, wiring: Wiring, states: Tensor | Sequence[Tensor], horizons: Sequence[int] = (1, 5, 40)) -> Tensor:
        """Forecast the weights some horizons after the last snapshot.

        Args:
            wiring: of the network, n parameters.
            states: the context, oldest first, raw: (context, n) float32, float16 or bfloat16, `interval` steps apart; or its
                snapshots (n,) one by one, wherever they lie: the learned forecasters copy none of them.
            horizons: how far ahead, in intervals.

        Returns:
            (len(horizons), n) float32 on the device of `states`, finite. Weights that no block of the wiring holds keep
            their last value, and so does one whose forecast overflows.

        Raises:
            BadRequest: an argument has the wrong shape, type or range; `field` names it.
            BadValue: `states` hold NaN or infinity.
        """
        snapshots = tuple(states)
        self._check_snapshots(wiring, snapshots)
        self.check(wiring, context=len(snapshots))
        steps = self._check_horizons(horizons)
        place = snapshots[0].device
        device = self.device or place
        with own_stream(device, shared=place.type == device.type):
            there = [snapshot.to(device, non_blocking=True) for snapshot in snapshots]
            return self._checked(wiring, there, horizons=steps).to(place)

    def _checked(self, wiring: Wiring, snapshots: Sequence[Tensor], *, horizons: Horizons) -> Tensor:
        """`predict` for snapshots on its device; all are asked to be finite at once, as an answer waits for whatever is queued."""
        # a sum is finite only if every term is, and a mask takes more than a snapshot
        sums = [snapshot.sum().float() for snapshot in interruptible_items(snapshots)]
        forecasts = self.predict(wiring, snapshots, horizons=horizons).to(torch.float32)
        sums += [row.sum() for row in interruptible_items(forecasts)]
        finite = torch.stack(sums).isfinite().tolist()
        for index, snapshot in enumerate(snapshots):
            if not finite[index] and not all(bool(piece.isfinite().all()) for piece in pieces(snapshot)):
                raise BadValue(f"snapshot {index} of the context holds NaN or infinity", field="states")
        last = snapshots[-1]
        for row, whole in zip(forecasts, finite[len(snapshots) :], strict=True):
            for piece, before in zip(pieces(row), pieces(last), strict=True) if not whole else ():
                piece.copy_(torch.where(piece.isfinite(), piece, before.float()))
        return forecasts

    def check(self, wiring: Wiring, *, context: int) -> None:
        """Raise BadRequest if it cannot forecast for this network, or from so many snapshots: before a run begins."""
        if self.context is not None and context != self.context:
            raise BadRequest(f"{self.name} forecasts from {self.context} snapshots, not {context}", field="context")
        if self.max_slots is not None and wiring.slots > self.max_slots:
            detail = f"edges of this network carry up to {wiring.slots} weights; {self.name} takes {self.max_slots}"
            raise BadRequest(detail, field="wiring")

    def working_bytes(self, wiring: Wiring, *, context: int) -> int:
        """The most memory a forecast takes where it computes, besides states and result, about; here, a copy of the states."""
        return 4 * context * wiring.size

    def host_bytes(self, wiring: Wiring) -> int:
        """The same of the host's memory, if it computes on a device."""
        return 0

    def work_s(self, wiring: Wiring, *, context: int) -> float:
        """How long a forecast takes, about: for simple ones, a few passes over the states."""
        return PASS_S * context * wiring.size

    @abstractmethod
    def predict(self, wiring: Wiring, states: Sequence[Tensor], *, horizons: Horizons) -> Tensor:
        """`forecast` for arguments that have been checked, the context one by one; values may overflow.

        Must write to none of its arguments, and return a tensor of its own.
        """

    def _check_snapshots(self, wiring: Wiring, snapshots: Sequence[Tensor]) -> None:
        if odd := [snapshot.dtype for snapshot in snapshots if not snapshot.is_floating_point()]:
            raise BadRequest(f"states must be floating point, not {odd[0]}", field="states")
        if wrong := [tuple(snapshot.shape) for snapshot in snapshots if snapshot.shape != (wiring.size,)]:
            detail = f"states must be (context, {wiring.size}), as the wiring has parameters; one is {wrong[0]}"
            raise BadRequest(detail, field="states")
        if len(snapshots) < LEAST_CONTEXT:
            raise BadRequest(f"a context has at least {LEAST_CONTEXT} snapshots, not {len(snapshots)}", field="states")

    def _check_horizons(self, horizons: Sequence[int]) -> Horizons:
        try:
            steps = tuple(operator.index(horizon) for horizon in horizons)
        except TypeError as error:
            raise BadRequest(f"horizons must be integers, not {horizons!r}", field="horizons") from error
        if not steps:
            raise BadRequest("at least one horizon is needed", field="horizons")
        for horizon in steps:
            if horizon < 1 or (self.max_horizon is not None and horizon > self.max_horizon):
                limit = f"1..{self.max_horizon}" if self.max_horizon is not None else "1 or more"
                raise BadRequest(f"a horizon of {self.name} is {limit} intervals, not {horizon}", field="horizons")
        return steps
