"""Forecasters that mean harm, or know nothing: what a run loses to them. `bench/hostile.py` measures it at length."""

from collections.abc import Callable, Sequence

import pytest
import torch
from small_runs import ScriptedEndpoint, onward
from teacher_task import VALIDATION, batch, loss, student
from torch import Tensor

from trainer_worker import Nowcast

STEPS, INTERVAL = 600, 3
Forecast = Callable[[Sequence[Tensor], int], Tensor]


def stale() -> Forecast:
    """The weights of fifty intervals ago."""
    seen: list[Tensor] = []

    def forecast(states: Sequence[Tensor], horizon: int) -> Tensor:
        seen.append(states[-1].clone())
        return seen[max(0, len(seen) - 50)]

    return forecast


def noise(share: float) -> Forecast:
    """Around the last weights, so many times as large."""
    generator = torch.Generator().manual_seed(0)

    def forecast(states: Sequence[Tensor], horizon: int) -> Tensor:
        return states[-1] + share * states[-1].std() * torch.randn(states[-1].shape, generator=generator)

    return forecast


HOSTILE: dict[str, Callable[[], Forecast]] = {
    "noise": lambda: noise(0.1),
    "random": lambda: noise(10.0),
    "sign-flipped": lambda: lambda states, horizon: 2 * states[-1] - onward(states, horizon),
    "exploding": lambda: lambda states, _: states[-1] * 1e6,
    "nan": lambda: lambda states, _: states[-1] * torch.nan,
    "stale": stale,
}


def train(forecast: Forecast | None) -> tuple[float, float]:
    """Mean and highest validation loss over the last tenth of a run, and after its first."""
    model = student()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses: list[float] = []

    def loop() -> None:
        for index in range(STEPS):
            optimizer.zero_grad()
            loss(model, batch(index)).backward()
            optimizer.step()
            if index >= STEPS // 10 and index % 10 == 0:
                losses.append(float(loss(model, VALIDATION).detach()))

    if forecast is None:
        loop()
    else:
        with Nowcast(model, optimizer, server=ScriptedEndpoint(forecast), max_steps=STEPS) as nowcast:
            loop()
        assert nowcast.summary()["interval"] == INTERVAL
    last = losses[-STEPS // 100 :]
    return sum(last) / len(last), max(losses)


@pytest.fixture(scope="module")
def plain() -> tuple[float, float]:
    """The losses of the run without nowcasts."""
    torch.set_num_threads(1)
    return train(None)


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_forecaster_costs_next_to_nothing(plain: tuple[float, float], kind: str) -> None:
    """Switching nowcasts on must never be a bet on the forecaster."""
    struck, highest = train(HOSTILE[kind]())
    assert struck <= 1.01 * plain[0]
    assert highest <= 1.05 * plain[1]


def test_a_forecaster_that_knows_something_helps(plain: tuple[float, float]) -> None:
    """Were pushes cut to nothing, every test of harmlessness would pass."""
    assert train(onward)[0] < plain[0]
