"""The forecasters without weights: `last`, `average`, `linear` and `spectral`."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Final

import torch
from torch import Tensor

from nowcast_server.forecasters.base import CPU, CUDA_LANES, PIECE, Forecaster, Horizons, pieces
from nowcast_server.interruption import interruptible_items, interruption_point
from protos.wiring import Wiring

BLOCK: Final = 128  # rows of a matrix, or columns of a tall one, whose movement `spectral` evens out together
LEAST_SQUARE: Final = 1e-6  # of a singular value, relative to the largest one's; below it is rounding
FLOPS: Final = 5e10  # of eigenvalues and products, on a slow core
AT_ONCE: Final = 1 << 24  # weights whose blocks a device takes in one go; one by one it would be no faster than a core
SMALLEST: Final = 1 << 12  # a block counts for so many at least: others wait while the host gathers them


class Last(Forecaster):
    """Forecasts that nothing changes: the last snapshot, at every horizon. Skill is measured against it."""

    name = "last"

    def predict(self, wiring: Wiring, states: Sequence[Tensor], *, horizons: Horizons) -> Tensor:
        return states[-1].to(torch.float32).repeat(len(horizons), 1)


class Linear(Forecaster):
    r"""Least squares over the context, extrapolated k intervals beyond the last snapshot, parameter by parameter.

    With :math:`t = 0 \ldots c-1` and the horizon at :math:`t = c - 1 + k`, the forecast is
    :math:`\bar w + \frac{\sum_t (t - \bar t)\, w_t}{\sum_t (t - \bar t)^2} (c - 1 + k - \bar t)`.
    """

    name = "linear"
    glide_horizon = 40
    """Far ahead only the slope counts: the way back to the line from where the last snapshot happens to lie is noise."""

    def working_bytes(self, wiring: Wiring, *, context: int) -> int:
        return 8 * context * min(wiring.size, PIECE)

    def weights(self, context: int, horizons: Horizons) -> Tensor:
        """How much each snapshot counts: (len(horizons), context) float64, rows add up to 1."""
        return line_weights(context, horizons)

    @torch.no_grad()
    def predict(self, wiring: Wiring, states: Sequence[Tensor], *, horizons: Horizons) -> Tensor:
        forecasts = torch.empty(len(horizons), len(states[0]), dtype=torch.float32, device=states[0].device)
        weights = self.weights(len(states), horizons).to(forecasts, non_blocking=True)
        for out, *parts in interruptible_items(zip(pieces(forecasts), *map(pieces, states), strict=True)):
            rows = torch.stack(parts).float()
            # about the last snapshot: what does not move stays put exactly, and small moves keep their digits
            torch.addmm(rows[-1].expand(len(horizons), -1), weights[:, :-1], rows[:-1].sub_(rows[-1]), out=out)
        return forecasts


class Average(Linear):
    """Forecasts the mean of the snapshots, at every horizon: latest-weight averaging."""

    name = "average"
    glide_horizon = 1

    def weights(self, context: int, horizons: Horizons) -> Tensor:
        return torch.full((len(horizons), context), 1 / context, dtype=torch.float64)


class Spectral(Linear):
    """As `linear`, but the singular values of each matrix's displacement become their fourth roots, at the same norm.

    Few directions carry most of what a matrix moves. So the others get a share of the push as well, as in Muon's steps (Jordan et
    al. 2024), which make all singular values equal. A matrix whose smaller side is beyond `BLOCK` is taken in blocks of so many
    rows (or columns, if it has fewer), so that the eigenvalue problems stay small.
    """

    name = "spectral"

    def work_s(self, wiring: Wiring, *, context: int) -> float:
        lanes = CUDA_LANES if self.device is not None and self.device.type == "cuda" else 1
        operations = sum(short**2 * (20 * short + 6 * long) for (short, long), _ in _batches(wiring, CPU))
        return super().work_s(wiring, context=context) + operations / (FLOPS * lanes)

    def working_bytes(self, wiring: Wiring, *, context: int) -> int:
        device = self.device or CPU
        most = max((len(places) * math.prod(shape) for shape, places in _batches(wiring, device)), default=0)
        return max(super().working_bytes(wiring, context=context), (16 if device == CPU else 40) * most)  # 24 for eigenvalues

    def predict(self, wiring: Wiring, states: Sequence[Tensor], *, horizons: Horizons) -> Tensor:
        forecasts = super().predict(wiring, states, horizons=horizons)
        pairs = list(zip(pieces(forecasts), pieces(states[-1]), strict=True))
        for piece, last in interruptible_items(pairs):
            piece.sub_(last)
        for row in forecasts:
            for shape, places in _batches(wiring, row.device):
                _even_out([row[first:].as_strided(shape, strides) for strides, first in places])
        for piece, last in interruptible_items(pairs):
            piece.add_(last)
        return forecasts


Sides = tuple[int, int]  # of a block, the shorter first; or the strides along them
Batch = tuple[Sides, list[tuple[Sides, int]]]  # blocks of one shape: their strides, and where in the flat vector they begin


def _batches(wiring: Wiring, device: torch.device) -> Iterator[Batch]:
    """The blocks of all matrices, which have a row for each neuron or channel: on the CPU one by one, else as many as may be."""
    found = defaultdict[Sides, list[tuple[Sides, int]]](list)
    for start, parameter in zip(wiring.offsets, wiring.parameters, strict=True):
        if len(parameter.shape) < 2 or not parameter.size:
            continue
        rows, columns = parameter.shape[0], parameter.size // parameter.shape[0]
        short, long, strides = (rows, columns, (columns, 1)) if rows <= columns else (columns, rows, (1, columns))
        for first in range(0, short, BLOCK):
            interruption_point()
            shape = min(BLOCK, short - first), long
            found[shape].append((strides, start + first * strides[0]))
            if device == CPU or (len(found[shape]) + 1) * max(math.prod(shape), SMALLEST) > AT_ONCE:
                yield shape, found.pop(shape)
    yield from found.items()


def _even_out(blocks: Sequence[Tensor]) -> None:
    """Replace the singular values of blocks of one shape by their fourth roots, and keep their norms; in place."""
    together = torch.stack(tuple(blocks)) if len(blocks) > 1 else blocks[0]  # one alone is not copied
    length = torch.linalg.vector_norm(together, dim=(-2, -1), keepdim=True)
    unit = (together / length).nan_to_num_(0, 0, 0)
    squares, vectors = torch.linalg.eigh(unit @ unit.mT)  # of the singular values, ascending
    factors = (squares / squares[..., -1:]).clamp(min=LEAST_SQUARE) ** -0.375  # from s to its fourth root
    flat = (vectors * factors.unsqueeze(-2)) @ (vectors.mT @ unit)
    flat *= length / torch.linalg.vector_norm(flat, dim=(-2, -1), keepdim=True)
    flat = torch.where(flat.isfinite(), flat, together)  # what does not move, or overflows, stays as it is
    for block, each in zip(blocks, flat.view(-1, *blocks[0].shape), strict=True):
        block.copy_(each)


def line_weights(context: int, horizons: Horizons) -> Tensor:
    """How much each snapshot counts in the extrapolated line: (len(horizons), context) float64."""
    time = torch.arange(context, dtype=torch.float64)
    centred = time - time.mean()
    ahead = context - 1 + torch.tensor(horizons, dtype=torch.float64) - time.mean()
    return 1 / context + torch.outer(ahead, centred / centred.square().sum())
