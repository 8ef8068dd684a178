"""Which examples make up a batch: a pure function of seed and step, so that a resumed run and a compared arm see the same."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


@lru_cache(maxsize=4)
def _order(examples: int, seed: int, epoch: int) -> Tensor:
    # numpy promises the raw stream of a bit generator for ever; permutations, numpy's or torch's, may change with a version
    return torch.from_numpy(np.argsort(np.random.PCG64([seed, epoch]).random_raw(examples), kind="stable"))


def batch_indices(examples: int, *, batch_size: int, seed: int, step: int, rank: int = 0, world: int = 1) -> Tensor:
    """This rank's share of the batch of `step`, counted from 0.

    Every epoch is a new permutation of all examples; a batch may span two epochs, so that no example is ever dropped.
    Rank r takes every `world`-th place from r on: all ranks together see the same batch whatever their number.

    Returns:
        (batch_size / world,) int64
    """
    if batch_size % world:
        raise ValueError(f"a batch of {batch_size} does not split evenly over {world} workers")
    places = range(step * batch_size + rank, (step + 1) * batch_size, world)
    first, last = places[0] // examples, places[-1] // examples
    orders = {epoch: _order(examples, seed, epoch) for epoch in range(first, last + 1)}
    if first == last:
        start = places[0] - first * examples
        return orders[first][start : start + len(places) * world : world]
    return torch.stack([orders[place // examples][place % examples] for place in places])
