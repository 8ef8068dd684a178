"""Standardisation: every parameter tensor is brought to the same scale before it is forecast, and back after."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

EPSILON = 1e-6
"""Added to a scale before dividing by it, never when multiplying back: what the published checkpoints were trained with."""

LEAST_SCALE = 1e-2
"""Floor of every scale but the per-tensor standard deviation."""


@dataclass(frozen=True, slots=True)
class Standardisation:
    r"""An affine map of each parameter, :math:`z = (w - m) / (s + \epsilon)`, fitted to a context.

    Args:
        mean: (n,) m of each parameter.
        scale: (n,) s of each parameter.

    For `std`, m and s are the mean and the unbiased standard deviation over the parameter's whole tensor *and* its c snapshots
    together. For `std-param` both are taken over the parameter's own snapshots. For `min-max`, m is 0 and s the range of
    the tensor over all snapshots.
    """

    mean: Tensor
    scale: Tensor

    @classmethod
    def fit(cls, states: Tensor, sizes: Sequence[int], *, method: str = "std") -> Self:
        """Fit to `states` (context, n), whose columns are tensors of the given `sizes`."""
        if method == "std-param":
            scale, mean = torch.std_mean(states, dim=0)
            return cls(mean, scale.clamp(min=LEAST_SCALE))
        fit = _std if method == "std" else _min_max
        pairs = [fit(tensor) for tensor in torch.split(states, list(sizes), dim=1) if tensor.numel()]
        repeats = torch.tensor([size for size in sizes if size], device=states.device)
        mean, scale = torch.stack([torch.stack(pair) for pair in pairs], dim=1)
        return cls(mean.repeat_interleave(repeats), scale.repeat_interleave(repeats))

    def apply(self, states: Tensor) -> Tensor:
        """Standardise (..., n)."""
        return (states - self.mean) / (self.scale + EPSILON)

    def invert(self, standardised: Tensor) -> Tensor:
        """Bring (..., n) back to the parameters' own scale."""
        return standardised * self.scale + self.mean


def _std(tensor: Tensor) -> tuple[Tensor, Tensor]:
    # transposed: pairwise summation then adds up in the order of the published code, which keeps rounding alike
    scale, mean = torch.std_mean(tensor.T.contiguous())
    return mean, scale


def _min_max(tensor: Tensor) -> tuple[Tensor, Tensor]:
    scale = tensor.amax() - tensor.amin()
    return torch.zeros_like(scale), scale.clamp(min=LEAST_SCALE)
