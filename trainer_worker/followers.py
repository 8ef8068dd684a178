"""Averages of the weights that follow the model when it jumps."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from trainer_worker.distributed import unwrap
from trainer_worker.errors import BadArgument
from trainer_worker.sharded import local


class Followers:
    """Moves averages of a model by what a jump moves it.

    An average is the course of a run without its noise. A jump moves the course; an average that stays behind would mix weights
    from before and after it for as long as it remembers.

    Args:
        averages: `AveragedModel`s of the model, or copies of it that are averaged otherwise.
        model: unwrapped.
        moving: the parameters of it that jump.

    Raises:
        BadArgument: one that is no average of this model.
    """

    def __init__(self, averages: Sequence[nn.Module], *, model: nn.Module, moving: Sequence[nn.Parameter]) -> None:
        jumping = set(moving)
        names = {name: parameter for name, parameter in model.named_parameters() if parameter in jumping}
        self._pairs = [pair for index, average in enumerate(averages) for pair in _pairs(average, names, index)]
        self._moving = moving if averages else ()

    @contextmanager
    def following(self) -> Iterator[None]:
        """While it is open, the model jumps."""
        with torch.no_grad():
            before = {parameter: local(parameter).clone() for parameter in self._moving}
            yield
            for parameter, average in self._pairs:
                moved = local(parameter) - before[parameter]
                local(average).add_(moved.to(average.device))


def _pairs(average: nn.Module, names: dict[str, nn.Parameter], index: int) -> Iterator[tuple[nn.Parameter, Tensor]]:
    inner = average.module if isinstance(average, AveragedModel) else average
    held = dict(unwrap(inner).named_parameters())
    for name, parameter in names.items():
        theirs = held.get(name)
        if theirs is None or theirs.shape != parameter.shape:
            detail = f"number {index} has no parameter {name!r} {tuple(parameter.shape)}: it is no average of this model"
            raise BadArgument("averages", detail)
        if theirs is parameter:
            raise BadArgument("averages", f"number {index} is the model itself; give a copy that is averaged")
        yield parameter, theirs
