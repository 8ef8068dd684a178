"""Check that all values are finite, without a mask of the tensor's size."""

import math
from typing import Final

import torch

PIECE: Final = 32_768
"""Values looked at in one go: they stay in cache, and torch handles so few on the calling thread."""


def first_not_finite(values: torch.Tensor) -> int | None:
    """Position of the first NaN or infinity in `values` (n,), of any float dtype; None if there is none.

    A sum is finite only if every term is; it reads each value once and makes nothing. (Finite values whose sum overflows are
    looked at again one by one.)
    """
    size = PIECE if values.device.type == "cpu" else max(1, values.numel())  # a device answers once
    for start in range(0, values.numel(), size):
        piece = values[start : start + size]
        if not math.isfinite(piece.sum(dtype=torch.float32).item()):
            wrong = piece.isfinite().logical_not_().nonzero()
            if wrong.numel():
                return start + int(wrong[0])
    return None
