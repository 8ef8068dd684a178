"""Measuring how good the weights are: on held batches, or by the running training loss."""

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from trainer_worker.distributed import Ranks
from trainer_worker.kept import random_states, restore_random_states

log = logging.getLogger(__name__)
Probe = Callable[[], "float | Tensor"]


class Gauge:
    """One number for the weights as they are; lower is better. The same on every rank.

    Args:
        model: put into evaluation mode while the probe runs.
        probe: gives the loss on held batches, the same each time; None to use the losses that `observe` is told.
        ranks: over which to average.
        window: how many of the latest losses make a measurement.
    """

    def __init__(self, model: nn.Module, probe: Probe | None, *, ranks: Ranks, window: int) -> None:
        self._model, self._probe, self._ranks = model, probe, ranks
        self._losses: deque[Tensor] = deque(maxlen=window)
        self._failed = False

    @property
    def immediate(self) -> bool:
        """Whether a change of the weights shows at once, not only after some steps."""
        return self._probe is not None

    def observe(self, loss: "Tensor | float") -> None:
        """Take a training loss; it stays on its device, and nothing waits for it."""
        self._losses.append(loss.detach() if isinstance(loss, Tensor) else torch.tensor(float(loss)))

    def forget(self) -> None:
        """Weights have changed at once: earlier losses say nothing about them."""
        self._losses.clear()

    @torch.no_grad()
    def measure(self) -> float:
        """The loss, averaged over the ranks; NaN if there is nothing to go by. Leaves no trace in model and random states."""
        if self._probe is not None:
            mine = self._ask(self._probe)
        elif self._losses:
            mine = float(torch.stack([loss.float().reshape(()) for loss in self._losses]).mean())
        else:
            mine = math.nan
        return self._ranks.mean(mine)

    def _ask(self, probe: Probe) -> float:
        try:
            with undisturbed(self._model):
                return float(probe())
        except Exception:
            # the whole story once: it will be the same at every measurement
            log.warning("the probe failed; without it no jump is made", exc_info=not self._failed)
            self._failed = True
            return math.nan

    def state_dict(self) -> list[float]:
        """The losses of the window."""
        return [float(loss) for loss in self._losses]

    def load_state_dict(self, losses: list[float]) -> None:
        """Go on from `state_dict()`."""
        self._losses.clear()
        self._losses.extend(torch.tensor(loss) for loss in losses)


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
        restore_random_states(states)
