"""Parameters that are split over ranks (FSDP2's `fully_shard`), one whole parameter in memory at a time."""

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether this rank holds a part only."""
    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """This rank's part, sharing its memory; a plain tensor is its own."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of it. A sharded one is gathered: every rank must call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_of(values: Tensor | None, like: Tensor) -> Tensor:
    """This rank's part of `values`, which are of the whole shape of `like` on rank 0, and None elsewhere if that is sharded.

    Rank 0 then scatters them: every rank must call.
    """
    if not isinstance(like, DTensor):
        assert values is not None
        return values.to(like.device)
    if values is None:
        values = torch.empty(like.shape, dtype=torch.float32)
    return local(distribute_tensor(values.to(like.device), like.device_mesh, like.placements))
