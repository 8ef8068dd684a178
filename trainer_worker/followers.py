"""Averages of the weights that follow the model when it jumps."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from trainer_worker.distributed import unwrap
from trainer_worker.errors import BadArgument
from trainer_worker.sharded import local


class WeightAverage(AveragedModel):
    """An exponential moving average of weights and buffers, to evaluate: `update_parameters(model)` after each step.

    Its memory is short where the weights it would remember are no good company: at the beginning of a run, a quarter of the steps
    so far (Shamir & Zhang 2013, eta = 3), and in the first steps after a jump, which repair it.

    Args:
        model: to average.
        decay: of the average; 0.998 remembers some 500 steps.
        short: the decay after a jump.
        spell: for so many steps.
    """

    def __init__(self, model: nn.Module, *, decay: float = 0.998, short: float = 0.98, spell: int = 200) -> None:
        for name, value in (("decay", decay), ("short", short)):
            if not 0 <= value < 1:
                raise BadArgument(name, f"must be from 0 to below 1, not {value!r}")
        super().__init__(model, multi_avg_fn=self._mix, use_buffers=True)
        self.decay, self.short, self.spell = decay, short, spell
        self.register_buffer("since_jump", torch.tensor(spell))
        self.since_jump: Tensor

    def update_parameters(self, model: nn.Module) -> None:
        """Take in the weights of one more step."""
        super().update_parameters(model)
        self.since_jump += 1

    def jumped(self) -> None:
        """The model has jumped."""
        self.since_jump.zero_()

    def _mix(self, averages: Sequence[Tensor], weights: Sequence[Tensor], count: Tensor | int) -> None:
        decay = min(self.decay, int(count) / (int(count) + 4))
        if int(self.since_jump) < self.spell:
            decay = min(decay, self.short)
        for average, weight in zip(averages, weights, strict=True):
            if average.is_floating_point():
                average.lerp_(weight, 1 - decay)
            else:
                average.copy_(weight)


class Followers:
    """Moves averages of a model by what a jump moves it.

    An average is the course of a run without its noise. A jump moves the course; an average that stays behind would mix weights
    from before and after it for as long as it remembers.

    Args:
        averages: `WeightAverage`s or other `AveragedModel`s of the model, or copies of it that are averaged otherwise.
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
        self._averages = averages

    @contextmanager
    def following(self) -> Iterator[None]:
        """While it is open, the model jumps."""
        with torch.no_grad():
            before = {parameter: local(parameter).clone() for parameter in self._moving}
            yield
            for parameter, average in self._pairs:
                moved = local(parameter) - before[parameter]
                local(average).add_(moved.to(average.device))
        for each in self._averages:
            if isinstance(each, WeightAverage):
                each.jumped()


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
