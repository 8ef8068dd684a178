"""Measuring how well a run is doing: on held batches, or by the running training loss."""

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from trainer_worker.trials.kept import random_states, restore_random_states
from trainer_worker.weights.average import RunningAverage
from trainer_worker.weights.distributed import Ranks
from trainer_worker.weights.sharded import let_go

log = logging.getLogger(__name__)
Probe = Callable[[], "float | Tensor"]


class Gauge:
    """One number for a stretch of training; lower is better. The same on every rank.

    The loss of single weights says little: they are some step's, and scatter about their course. With a probe it is therefore that
    of their average over the steps since `forget`, with the average of batch normalisation's statistics, which each rank takes by
    itself. (Half an interval of averaged weights is off a run's course by 1-3% of the loss, single weights by 5-14%; docs/log.md,
    2026-11-25.) Without a probe it is the mean of the training losses.

    Args:
        model: put into evaluation mode while the probe runs.
        parameters: what jumps.
        probe: gives the loss on held batches, the same each time; None to use the losses that `observe` is told.
        ranks: over which to average.
        window: the longest stretch, in steps.
    """

    def __init__(
        self, model: nn.Module, parameters: Sequence[nn.Parameter], probe: Probe | None, *, ranks: Ranks, window: int
    ) -> None:
        self._model, self._probe, self._ranks = model, probe, ranks
        self._losses: deque[Tensor] = deque(maxlen=window)
        self._average = RunningAverage([*parameters, *_statistics(model)]) if probe is not None else None
        self._steps = 0
        self._failed = False

    @property
    def immediate(self) -> bool:
        """Whether a change of the weights shows at once, not only after some steps."""
        return self._probe is not None

    def observe(self, loss: "Tensor | float") -> None:
        """Take a training loss, as it is now; it stays on its device, and nothing waits for it."""
        self._losses.append(loss.detach().clone() if isinstance(loss, Tensor) else torch.tensor(float(loss), dtype=torch.float32))

    @property
    def steps(self) -> int:
        """Followed since `forget`."""
        return self._steps

    def follow(self) -> None:
        """Take in the weights after a step."""
        self._steps += 1
        if self._average is not None:
            self._average.add()

    def forget(self) -> None:
        """The next stretch begins."""
        self._steps = 0
        self._losses.clear()
        if self._average is not None:
            self._average.forget()

    @torch.no_grad()
    def measure(self) -> float:
        """The loss, averaged over the ranks; that of the weights as they are if they were not followed since `forget`, and NaN if
        there is nothing to go by: the probe fails, or no loss was told. (A told one that is NaN counts as infinite.) Leaves no
        trace in model and random states.
        """
        if self._average is not None:
            mine = self._ask(self._average)
        elif self._losses:
            mean = float(torch.stack([loss.float().reshape(()).cpu() for loss in self._losses]).mean())
            mine = math.inf if math.isnan(mean) else mean
        else:
            mine = math.nan
        return self._ranks.mean(mine)

    def _ask(self, average: RunningAverage) -> float:
        assert self._probe is not None
        try:
            with undisturbed(self._model), average.loaded() if self._steps else nullcontext():
                return float(self._probe())
        except Exception:
            if not self._failed:  # it will be the same at every measurement
                log.warning("the probe failed; without it no jump is made", exc_info=True)
            self._failed = True
            return math.nan

    def state_dict(self) -> dict[str, Any]:
        """The stretch so far."""
        return {
            "steps": self._steps,
            "losses": [float(loss) for loss in self._losses],
            "average": self._average.state_dict() if self._average is not None else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self._steps = state["steps"]
        self._losses.clear()
        self._losses.extend(torch.tensor(loss, dtype=torch.float32) for loss in state["losses"])
        if self._average is not None and state["average"] is not None:
            self._average.load_state_dict(state["average"])


def _statistics(model: nn.Module) -> list[Tensor]:
    """Of normalisation layers."""
    norms = (module for module in model.modules() if isinstance(module, _NormBase))
    return [buffer for norm in norms for buffer in norm.buffers(recurse=False) if buffer.is_floating_point()]


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; modes and random states are put back."""
    states = random_states()
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
            let_go(module)
        restore_random_states(states)
