"""The forecasters without weights: `last`, `average` and `linear`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from nowcast_server.forecasters.base import Forecaster, Horizons
from nowcast_server.interruption import interruption_point
from protos.wiring import Wiring


class Last(Forecaster):
    """Forecasts the last snapshot, at every horizon: the yardstick of skill."""

    name = "last"

    def predict(self, wiring: Wiring, states: Sequence[Tensor], *, horizons: Horizons) -> Tensor:
        del wiring
        return states[-1].to(torch.float32).repeat(len(horizons), 1)


class Average(Forecaster):
    """Forecasts the mean of the snapshots, at every horizon: latest-weight averaging."""

    name = "average"

    def predict(self, wiring: Wiring, states: Sequence[Tensor], *, horizons: Horizons) -> Tensor:
        del wiring
        return stacked(states).mean(dim=0).repeat(len(horizons), 1)


class Linear(Forecaster):
    r"""Least squares over the context, extrapolated k intervals beyond the last snapshot, parameter by parameter.

    With :math:`t = 0 \ldots c-1` and the horizon at :math:`t = c - 1 + k`, the forecast is
    :math:`\bar w + \frac{\sum_t (t - \bar t)\, w_t}{\sum_t (t - \bar t)^2} (c - 1 + k - \bar t)`.
    """

    name = "linear"
    glide_horizon = 40
    """Far ahead only the slope counts: the way back to the line from where the last snapshot happens to lie is noise."""

    def predict(self, wiring: Wiring, states: Sequence[Tensor], *, horizons: Horizons) -> Tensor:
        del wiring
        last, before = states[-1].to(torch.float32), stacked(states[:-1])
        weights = line_weights(len(states), horizons).to(before, non_blocking=True)  # (horizons, context), rows add up to 1
        before -= last
        # about the last snapshot: what does not move stays put exactly, and small moves keep their digits
        return torch.addmm(last.expand(len(horizons), -1), weights[:, :-1], before)


def line_weights(context: int, horizons: Horizons) -> Tensor:
    """How much each snapshot counts in the extrapolated line: (len(horizons), context) float64."""
    time = torch.arange(context, dtype=torch.float64)
    centred = time - time.mean()
    ahead = context - 1 + torch.tensor(horizons, dtype=torch.float64) - time.mean()
    return 1 / context + torch.outer(ahead, centred / centred.square().sum())


def stacked(states: Sequence[Tensor]) -> Tensor:
    """A copy of the snapshots (n,) in float32, (len(states), n), and nothing of its size besides."""
    rows = torch.empty(len(states), len(states[0]), dtype=torch.float32, device=states[0].device)
    for row, state in zip(rows, states, strict=True):
        interruption_point()
        row.copy_(state)
    return rows
