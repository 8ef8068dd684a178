"""Arithmetic on tiles: H x H products in float32 or bfloat16, activations in place."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, Protocol

import torch
from torch import Tensor, nn

from nowcast_server.nino.engine.fold import Affine
from nowcast_server.nino.precision import Precision

ACTIVATE: Final[Mapping[str, Callable[[Tensor], Tensor]]] = {
    "silu": partial(nn.functional.silu, inplace=True),
    "relu": torch.relu_,
    "gelu": torch.ops.aten.gelu_,
    "tanh": torch.tanh_,
}


class Products(Protocol):
    """Products of a tile's hidden vectors h (E, H) with the matrix (H, width) of an affine map."""

    def add(self, h: Tensor, affine: Affine, out: Tensor) -> None:
        """Add the product to `out` (E, width)."""

    def set(self, h: Tensor, affine: Affine, out: Tensor) -> None:
        """Set `out` (E, width) to the product."""


class Float32:
    """Exact, or with TF32 factors if torch has been told so."""

    def add(self, h: Tensor, affine: Affine, out: Tensor) -> None:
        out.addmm_(h, affine.matrix)

    def set(self, h: Tensor, affine: Affine, out: Tensor) -> None:
        torch.mm(h, affine.matrix, out=out)


class BFloat16:
    """Factors are rounded to 8 bits of mantissa, and so is each product; sums over edges stay in float32."""

    def add(self, h: Tensor, affine: Affine, out: Tensor) -> None:
        assert affine.narrow is not None
        out += h.bfloat16() @ affine.narrow

    def set(self, h: Tensor, affine: Affine, out: Tensor) -> None:
        assert affine.narrow is not None
        out.copy_(h.bfloat16() @ affine.narrow)


PRODUCTS: Final[Mapping[Precision, type[Products]]] = {"float32": Float32, "tf32": Float32, "bfloat16": BFloat16}
