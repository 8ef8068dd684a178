"""Precision of the engine's products."""

from typing import Final, Literal, get_args

Precision = Literal["float32", "tf32", "bfloat16"]
"""`float32` is exact. `tf32` rounds the factors of every product to 11 bits on a CUDA device; torch has one switch for the whole
process, so a server sets it at its start, and in a training's process the training's own choice holds. `bfloat16` rounds the
factors of the products of H x H to 8 bits, on any device."""

PRECISIONS: Final[tuple[Precision, ...]] = get_args(Precision)
