"""The forecasters without weights: `last`, `average`, `linear` and `spectral`."""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from nowcast_server.forecasters.base import CUDA_LANES, Forecaster, Horizons
from nowcast_server.interruption import interruption_point
from protos.wiring import Parameter, Wiring

BLOCK: Final = 128  # rows of a matrix, or columns of a tall one, whose movement `spectral` evens out together
LEAST_SQUARE: Final = 1e-6  # of a singular value, relative to the largest one's; below it is rounding
FLOPS: Final = 5e10  # of eigenvalues and products, on a slow core


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


class Spectral(Linear):
    """The line; but of each matrix's displacement the singular values are replaced by their fourth roots, at the same length.

    Few directions carry most of what a matrix moves. So the others get a share of the push as well, as in Muon's steps (Jordan et
    al. 2024), which make all singular values equal. A matrix whose smaller side is beyond `BLOCK` is taken in blocks of so many
    rows (or columns, if it has fewer), so that the eigenvalue problems stay small.
    """

    name = "spectral"

    def work_s(self, wiring: Wiring, *, context: int) -> float:
        lanes = CUDA_LANES if self.device is not None and self.device.type == "cuda" else 1
        operations = sum(_operations(*_sides(parameter)) for parameter in wiring.parameters if _is_matrix(parameter))
        return super().work_s(wiring, context=context) + operations / (FLOPS * lanes)

    def working_bytes(self, wiring: Wiring, *, context: int) -> int:
        sides = (sorted(_sides(parameter)) for parameter in wiring.parameters if _is_matrix(parameter))
        block = max((min(short, BLOCK) * long for short, long in sides), default=0)
        # a block's parts come after the copies of the states, and are more than those of few
        return max(super().working_bytes(wiring, context=context), 4 * wiring.size + 16 * block)

    def predict(self, wiring: Wiring, states: Sequence[Tensor], *, horizons: Horizons) -> Tensor:
        forecasts, last = super().predict(wiring, states, horizons=horizons), states[-1].to(torch.float32)
        forecasts -= last
        for start, parameter in zip(wiring.offsets, wiring.parameters, strict=True):
            if _is_matrix(parameter):
                for matrix in torch.unflatten(forecasts[:, start : start + parameter.size], 1, _sides(parameter)):
                    _flatten_spectrum(matrix)
        return forecasts.add_(last)


def _is_matrix(parameter: Parameter) -> bool:
    return len(parameter.shape) > 1 and parameter.size > 0


def _sides(parameter: Parameter) -> tuple[int, int]:
    """Rows, one for each neuron or channel, and columns, of a parameter that is not empty."""
    return parameter.shape[0], parameter.size // parameter.shape[0]


def _operations(rows: int, columns: int) -> int:
    short, long = sorted((rows, columns))
    return short * min(short, BLOCK) * (20 * min(short, BLOCK) + 6 * long)


def _flatten_spectrum(matrix: Tensor) -> None:
    """Replace the singular values of a matrix, or of a large one's blocks, by their fourth roots, and keep its norm; in place."""
    wide = matrix if len(matrix) <= matrix.shape[1] else matrix.T
    for block in torch.split(wide, BLOCK):
        interruption_point()
        length = torch.linalg.vector_norm(block)
        unit = (block / length).nan_to_num(0, 0, 0)
        squares, vectors = torch.linalg.eigh(unit @ unit.T)  # of the singular values, ascending
        factors = (squares / squares[-1]).clamp(min=LEAST_SQUARE) ** -0.375  # from s to its fourth root
        flat = (vectors * factors) @ (vectors.T @ unit)
        flat *= length / torch.linalg.vector_norm(flat)
        block.copy_(torch.where(flat.isfinite(), flat, block))  # what does not move, or overflows, stays as it is


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
