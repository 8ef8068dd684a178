"""A training run that takes milliseconds, and endpoints that need no server."""

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from waiting import until

from protos.messages import JobSpec, Outcome, Skill
from trainer_worker import Jump, Nowcast
from trainer_worker.endpoints.deadline import Deadline

INTERVAL, CONTEXT = 2, 5
PERIOD = INTERVAL * CONTEXT
WHOLE = Jump(growth=1)
"""Loads the forecast as it is."""


def network(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """An MLP of 8-16-2, the same for a seed."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2)).to(dtype)


def flat(model: nn.Module) -> Tensor:
    """The parameters as one vector."""
    return torch.cat([parameter.detach().reshape(-1).clone() for parameter in model.parameters()])


def step(model: nn.Module, optimizer: torch.optim.Optimizer, index: int) -> None:
    """Train on batch `index`, which is the same in every run."""
    generator = torch.Generator().manual_seed(index)
    dtype = next(model.parameters()).dtype
    inputs = torch.randn(32, 8, generator=generator).to(dtype)
    optimizer.zero_grad()
    functional.cross_entropy(model(inputs), (inputs.sum(1) > 0).long()).backward()
    optimizer.step()


class ShiftingEndpoint:
    """Forecasts `last + shift`; remembers what it was asked, and fails when told to.

    Args:
        shift: added to the last snapshot, times the horizon.
        fail: called with the name of each call before it is done; may raise.
    """

    local = False

    def __init__(self, shift: float = 0.01, *, fail: Callable[[str], Any] = lambda _: None) -> None:
        self.shift, self.fail = shift, fail
        self.history: dict[int, Tensor] = {}
        self.sent: dict[int, Tensor] = {}
        self.asked: list[tuple[int, tuple[int, ...]]] = []
        self.outcomes: list[Outcome] = []
        self.closed = False

    def register(self, spec: JobSpec, *, replace: bool, deadline: Deadline) -> Collection[int]:
        self.fail("register")
        self.spec = spec
        if replace:
            self.history.clear()
        return tuple(self.history)

    def send(self, step: int, snapshot: Tensor, *, deadline: Deadline) -> None:
        self.fail("send")
        self.history[step] = self.sent[step] = snapshot.clone()

    def forecast(self, step: int, horizons: tuple[int, ...], out: Tensor, *, deadline: Deadline) -> None:
        self.fail("forecast")
        self.asked.append((step, horizons))
        for row, horizon in zip(out, horizons, strict=True):
            row.copy_(self.history[step].float() + self.shift * horizon)

    def report(self, outcome: Outcome, *, deadline: Deadline) -> None:
        self.fail("report")
        self.outcomes.append(outcome)

    def skill(self, *, deadline: Deadline) -> Skill:
        self.fail("skill")
        return {}

    def close(self) -> None:
        self.closed = True


def wait_for_forecasts(nowcast: Nowcast) -> None:
    """Wait until what was asked for has come: a few steps of so small a network are over before that."""
    pending = nowcast._cycle._candidates.pending
    assert pending is not None
    assert pending.request is not None
    until(pending.request.done.is_set)
