"""Forecasters that mean harm, or know nothing: what a guarded run loses to them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_runs import ShiftingEndpoint
from torch import Tensor, nn
from torch.nn import functional

from trainer_worker import Guard, Nowcast
from trainer_worker.deadline import Deadline

INTERVAL, STEPS = 20, 1000
RANDOM = torch.Generator().manual_seed(0)
HOSTILE: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "random": lambda last, _, __: torch.randn(last.shape, generator=RANDOM) * last.std(),
    "sign-flipped": lambda last, first, horizon: last - (last - first) / 4 * horizon,
    "exploding": lambda last, _, __: last * 1e6,
    "not finite": lambda last, _, __: last * torch.nan,
    "stale": lambda _, first, __: first,
}


class HostileEndpoint(ShiftingEndpoint):
    """Forecasts by one of `HOSTILE` from the last and the first snapshot of the context."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forecast(self, step: int, horizons: tuple[int, ...], out: Tensor, *, deadline: Deadline) -> None:
        for row, horizon in zip(out, horizons, strict=True):
            row.copy_(HOSTILE[self.kind](self.history[step], self.history[step - 4 * INTERVAL], horizon))


def batch(index: int, size: int = 64) -> tuple[Tensor, Tensor]:
    """Noisy labels of a fixed random network."""
    teacher = torch.Generator().manual_seed(100)
    first, second = torch.randn(16, 32, generator=teacher), torch.randn(32, 4, generator=teacher)
    generator = torch.Generator().manual_seed(index)
    inputs = torch.randn(size, 16, generator=generator)
    noise = 0.5 * torch.randn(size, 4, generator=generator)
    return inputs, ((inputs @ first).tanh() @ second + noise).argmax(1)


def train(endpoint: Any = None) -> tuple[float, dict[str, Any]]:
    """Validation loss at the end of a run, and its summary."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    held, validation = batch(10**6, 1000), batch(10**6 + 1, 4000)

    def loop() -> None:
        for index in range(STEPS):
            inputs, targets = batch(index)
            optimizer.zero_grad()
            functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()

    summary: dict[str, Any] = {}
    if endpoint is None:
        loop()
    else:
        probe = lambda: functional.cross_entropy(model(held[0]), held[1])  # noqa: E731
        nowcast = Nowcast(
            model, optimizer, server=endpoint, max_steps=STEPS, interval=INTERVAL, probe=probe, guard=Guard(budget=0.1)
        )
        with nowcast:
            loop()
        summary = nowcast.summary()
    with torch.no_grad():
        return float(functional.cross_entropy(model(validation[0]), validation[1])), summary


@pytest.fixture(scope="module")
def plain() -> float:
    """The loss of the run without nowcasts."""
    torch.set_num_threads(1)
    return train()[0]


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_forecaster_costs_no_more_than_the_bound(plain: float, kind: str) -> None:
    """Switching nowcasts on must never be a bet on the forecaster."""
    loss, summary = train(HostileEndpoint(kind))
    assert summary["nowcasts"]["rejected"] + summary["nowcasts"]["skipped"] > 0
    assert summary["cost_steps"] <= 0.1 * STEPS
    assert loss <= 1.04 * plain
    if kind not in ("sign-flipped", "stale"):  # small steps back are made up for within the window, and may be accepted
        assert summary["nowcasts"]["accepted"] == 0
