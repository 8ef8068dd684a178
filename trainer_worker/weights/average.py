"""Running averages of weights in training: without the noise of single steps."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from trainer_worker.weights.sharded import local


class RunningAverage:
    """The mean of parameters over the steps since `forget`, on their device, in float32 at least; one `lerp` a step.

    Args:
        parameters: to average, buffers as well; with a sharded one, each rank averages its shard.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters = list(parameters)
        self._means = [
            torch.zeros_like(parameter, dtype=torch.promote_types(parameter.dtype, torch.float32), requires_grad=False)
            for parameter in self._parameters
        ]
        self._count = 0

    @torch.no_grad()
    def add(self) -> None:
        """Take in the present weights."""
        self._count += 1
        means = [local(mean) for mean in self._means]
        weights = [local(parameter).to(mean.dtype) for parameter, mean in zip(self._parameters, means, strict=True)]
        if self._count == 1:
            torch._foreach_copy_(means, weights)
        else:
            torch._foreach_lerp_(means, weights, 1 / self._count)

    def forget(self) -> None:
        """Begin anew: the weights have changed at once, or the next snapshot's average begins."""
        self._count = 0

    @contextmanager
    def loaded(self) -> Iterator[None]:
        """While it is open, the parameters are the average; then they are what they were, bit for bit. Takes a copy of them."""
        weights = [local(parameter) for parameter in self._parameters]
        with torch.no_grad():
            held = [weight.clone() for weight in weights]
        try:
            _write(weights, [local(mean) for mean in self._means])
            yield
        finally:
            _write(weights, held)

    @property
    def means(self) -> Mapping[Tensor, Tensor]:
        """The average of each parameter; none before the first step."""
        return dict(zip(self._parameters, self._means, strict=True)) if self._count else {}

    def state_dict(self) -> dict[str, Any]:
        """All of it; the means copied."""
        return {"count": self._count, "means": [mean.clone() for mean in self._means] if self._count else []}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`; anew, if it is of other parameters: of a run that trained more layers, or fewer."""
        means = state["means"]
        same = [saved.shape for saved in means] == [mean.shape for mean in self._means]
        self._count = state["count"] if same else 0
        for mean, saved in zip(self._means, means if same else (), strict=False):
            mean.copy_(saved)


@torch.no_grad()
def _write(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)
