"""Averages of the weights that follow the model when it jumps."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from trainer_worker.errors import BadArgument
from trainer_worker.weights.distributed import unwrap
from trainer_worker.weights.sharded import local


class WeightAverage(AveragedModel):
    """An exponential moving average of weights and buffers, to evaluate: `update_parameters(model)` after each step.

    Its memory is short where the weights it would remember are no good company: at the beginning of a run, a quarter of the steps
    so far (Shamir & Zhang 2013, eta = 3), and in the first steps after a jump, which repair it.

    Of a buffer, what is not finite is taken as it is: a causal mask stays one. The average of a narrow tensor, bfloat16 or float16,
    is kept in float32, where steps as small as its are not lost; the module that is evaluated has it rounded.

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
        super().__init__(model, use_buffers=True)
        self.decay, self.short, self.spell = decay, short, spell
        self.register_buffer("since_jump", torch.tensor(spell))
        self.since_jump: Tensor
        for name, tensor in self._averaged():
            if tensor.is_floating_point() and torch.promote_types(tensor.dtype, torch.float32) != tensor.dtype:
                self.register_buffer(_wide(name), tensor.detach().float())

    @property
    def means(self) -> Mapping[Tensor, Tensor]:
        """The average behind each tensor of the module: that tensor itself, or one in float32."""
        return {tensor: getattr(self, _wide(name), tensor) for name, tensor in self._averaged()}

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take in the weights of one more step."""
        decay = min(self.decay, int(self.n_averaged) / (int(self.n_averaged) + 4))
        if int(self.since_jump) < self.spell:
            decay = min(decay, self.short)
        for mean, weight in zip(self.means.values(), chain(model.parameters(), model.buffers()), strict=False):
            if not decay or not mean.is_floating_point():
                mean.copy_(weight)
            elif isinstance(weight, nn.Parameter):
                mean.lerp_(weight.to(mean.device, mean.dtype), 1 - decay)
            else:
                new = weight.to(mean.device, mean.dtype)
                mean.copy_(torch.where(mean.isfinite(), mean.lerp(new, 1 - decay), new))
        self._round()
        self.n_averaged += 1
        self.since_jump += 1

    def jumped(self) -> None:
        """The model has jumped, and `means` with it."""
        self._round()
        self.since_jump.zero_()

    @torch.no_grad()
    def _round(self) -> None:
        for tensor, mean in self.means.items():
            if mean is not tensor:
                tensor.copy_(mean)

    def _averaged(self) -> Iterator[tuple[str, Tensor]]:
        return chain(self.module.named_parameters(), self.module.named_buffers())

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Of a state without averages in float32 the module's are taken."""
        for name, _ in self._averaged():
            if hasattr(self, _wide(name)) and f"{prefix}module.{name}" in state_dict:
                state_dict.setdefault(prefix + _wide(name), state_dict[f"{prefix}module.{name}"].float())
        super()._load_from_state_dict(state_dict, prefix, *args)


def _wide(name: str) -> str:
    """The buffer with the average in float32; names of buffers have no dots."""
    return f"float32 {name.replace('.', ' ')}"


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
        self._pairs = [(average, list(_pairs(average, names, index))) for index, average in enumerate(averages)]
        self._moving = moving if averages else ()

    @contextmanager
    def following(self) -> Iterator[None]:
        """While it is open, the model jumps."""
        with torch.no_grad():
            before = {parameter: local(parameter).clone() for parameter in self._moving}
            yield
            for average, pairs in self._pairs:
                means = average.means if isinstance(average, WeightAverage) else {}
                for parameter, theirs in pairs:
                    mean = local(means.get(theirs, theirs))
                    wide = torch.promote_types(parameter.dtype, mean.dtype)
                    moved = local(parameter).to(wide) - before[parameter].to(wide)
                    mean.add_(moved.to(mean.device))
                if isinstance(average, WeightAverage):
                    average.jumped()


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
