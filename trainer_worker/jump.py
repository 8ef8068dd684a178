"""Taking a forecast over: how much of it and of its growth, and what becomes of the optimizer's moments and the normalisation
statistics.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Adam, Optimizer

from trainer_worker.errors import BadArgument
from trainer_worker.trials.gauge import undisturbed
from trainer_worker.trials.kept import state_of
from trainer_worker.weights.flat import FlatParameters
from trainer_worker.weights.followers import Followers

log = logging.getLogger(__name__)
Moments = Literal["keep", "reset", "rescale"]


@dataclass(frozen=True)
class Jump:
    """How a forecast is taken over. What is undone with a rejected jump includes all of it.

    Args:
        scale: share of the displacement, forecast minus last snapshot, that is made once growth is held back; 1 is all of it. The
            way is bent then, so that a share of a turn leaves norms as they are too.
        growth: how much of a weight tensor's growth is made: the power of what the forecast makes of its norm. 0 turns the weights
            and leaves their norm, 1 takes the forecast as it is, as the paper does. The larger weights are, the less a step of Adam
            turns them (van Laarhoven 2017): a jump that makes all of the growth has the run learn less afterwards, and overfit
            sooner (bench/acceleration/results). Tensors of one dimension go where they are forecast.
        limit: the longest displacement, as a multiple of the distance from the first to the last snapshot of the context; longer
            ones are shortened to it, measured before the way is bent. A straight line drawn on by k intervals has
            k / (context - 1). None for no limit.
        moments: the optimizer's state after a jump. `keep` leaves it; `reset` clears it, and the optimizer starts as at its first
            step; `rescale` (Adam, AdamW) keeps the estimates, but makes them give way to new gradients as fast as if they were
            only `interval` steps old.
        recalibrate: batch normalisation's running statistics are those of the weights before the jump. A callable that runs the
            model over a few batches has them taken anew, as averages over these; True runs the probe for it. Called on every
            rank, without gradients, all other modules in evaluation mode.
    """

    scale: float = 1.0
    growth: float = 0.0
    limit: float | None = None
    moments: Moments = "keep"
    recalibrate: bool | Callable[[], Any] = False

    def __post_init__(self) -> None:
        if not 0 < self.scale <= 1:
            raise BadArgument("jump", f"scale must be above 0 and at most 1, not {self.scale!r}")
        if not 0 <= self.growth <= 1:
            raise BadArgument("jump", f"growth must be from 0 to 1, not {self.growth!r}")
        if self.limit is not None and not self.limit > 0:
            raise BadArgument("jump", f"limit must be positive, or None, not {self.limit!r}")
        if self.moments not in get_args(Moments):
            raise BadArgument("jump", f"moments must be one of {', '.join(get_args(Moments))}, not {self.moments!r}")
        if not (isinstance(self.recalibrate, bool) or callable(self.recalibrate)):
            raise BadArgument("jump", f"recalibrate must be a callable, True or False, not {self.recalibrate!r}")


class Landing:
    """Makes jumps, on every rank.

    Args:
        jump: how.
        parameters: what jumps.
        model: whose normalisation statistics to take anew.
        optimizer: whose moments to set right.
        interval: steps between snapshots.
        probe: runs the model over the held batches; None if there is none.
        averages: of the model, which follow it.

    Raises:
        BadArgument: what `jump` asks for cannot be done here.
    """

    def __init__(
        self,
        jump: Jump,
        *,
        parameters: FlatParameters,
        model: nn.Module,
        optimizer: Optimizer,
        interval: int,
        probe: Callable[[], Any] | None,
        averages: Sequence[nn.Module] = (),
    ) -> None:
        if jump.moments == "rescale" and not isinstance(optimizer, Adam):
            raise BadArgument("jump", f"moments can be rescaled for Adam and AdamW, not for {type(optimizer).__name__}; reset them")
        if jump.recalibrate is True and probe is None:
            raise BadArgument("jump", "recalibrate=True runs the probe, and there is none; give probe=, or a callable here")
        self._jump, self._parameters, self._optimizer, self._interval = jump, parameters, optimizer, interval
        self._model = model
        self._followers = Followers(averages, model=model, moving=list(parameters.trained))
        self._run = probe if jump.recalibrate is True else jump.recalibrate or None

    def soften(self, forecast: Tensor, *, first: Tensor, last: Tensor) -> None:
        """Hold a forecast's growth back and shorten its displacement, in place.

        Args:
            forecast: (n,) float32.
            first: (n,) the oldest snapshot of the context.
            last: (n,) the newest.
        """
        if self._jump.growth != 1:
            self._parameters.hold_norms(forecast, last=last, growth=self._jump.growth)
        factor = self._jump.scale
        if self._jump.limit is not None:
            longest = self._jump.limit * self._parameters.distance(first, last)
            factor = min(factor, longest / max(self._parameters.distance(last, forecast), 1e-30))
        if factor != 1:
            self._parameters.shorten(forecast, last=last, factor=factor, growth=self._jump.growth)

    def make(self, target: Tensor | None, *, late: bool) -> None:
        """Load `target` (`FlatParameters.load`) and set right what hangs on the weights."""
        with self._followers.following():
            self._parameters.load(target, late=late)
        if self._jump.moments == "reset":
            for parameter in self._parameters.moving:
                state_of(self._optimizer).pop(parameter, None)
        elif self._jump.moments == "rescale":
            _make_younger(self._optimizer, list(self._parameters.moving), steps=self._interval)
        if self._run is not None:
            recalibrate(self._model, self._run)


@torch.no_grad()
def _make_younger(optimizer: Optimizer, parameters: list[nn.Parameter], *, steps: int) -> None:
    """Make Adam's moments those of so many steps with the same estimates: m / (1 - beta^t), its bias-corrected mean, stays."""
    moving = set(parameters)
    for group in optimizer.param_groups:
        betas = [float(beta) for beta in group["betas"]]
        for parameter in moving.intersection(group["params"]):
            state = optimizer.state.get(parameter)
            if not state or (age := float(state["step"])) <= steps:
                continue
            for name, beta in (("exp_avg", betas[0]), ("exp_avg_sq", betas[1]), ("max_exp_avg_sq", betas[1])):
                if name in state:
                    state[name] *= (1 - beta**steps) / (1 - beta**age)
            state["step"].fill_(steps)


@torch.no_grad()
def recalibrate(model: nn.Module, run: Callable[[], Any]) -> None:
    """Take batch normalisation's running statistics anew, as averages over the batches of `run`.

    Where `run` fails, or does not reach a module, they stay as they were. Random states and modes are put back.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.running_mean is not None]
    if not norms:
        return
    kept = [{name: buffer.clone() for name, buffer in norm.named_buffers()} for norm in norms]
    with undisturbed(model), ExitStack() as stack:
        for norm in norms:
            stack.callback(setattr, norm, "momentum", norm.momentum)
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative average
            norm.train()
        failed = False
        try:
            run()
        except Exception:
            log.exception("normalisation statistics could not be taken anew")
            failed = True
    for norm, buffers in zip(norms, kept, strict=True):
        unseen = failed or not int(norm.num_batches_tracked or 0)
        for name, buffer in norm.named_buffers():
            if unseen or name == "num_batches_tracked":
                buffer.copy_(buffers[name])
