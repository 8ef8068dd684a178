"""Forecasters that mean harm, or know nothing: what a run loses to them. They are those of `bench/hostile.py`, which measures it at
length.
"""

import pytest
import scripts
import torch
from teacher_task import VALIDATION, batch, loss, student

from trainer_worker import Nowcast

STEPS, INTERVAL = 600, 3
hostile = scripts.load("bench/hostile.py")


def train(kind: str | None) -> tuple[float, float]:
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

    if kind is None:
        loop()
    else:
        with Nowcast(model, optimizer, server=hostile.Endpoint(kind), max_steps=STEPS) as nowcast:
            loop()
        assert nowcast.summary()["interval"] == INTERVAL
        assert nowcast.summary()["nowcasts"]["skipped" if kind == "nan" else "used"] > 100
    last = losses[-STEPS // 100 :]
    return sum(last) / len(last), max(losses)


@pytest.fixture(scope="module")
def plain() -> tuple[float, float]:
    """The losses of the run without nowcasts."""
    torch.set_num_threads(1)
    return train(None)


@pytest.mark.parametrize("kind", hostile.HOSTILE)
def test_a_hostile_forecaster_costs_next_to_nothing(plain: tuple[float, float], kind: str) -> None:
    """Switching nowcasts on must never be a bet on the forecaster."""
    struck, highest = train(kind)
    assert struck <= 1.01 * plain[0]
    assert highest <= 1.05 * plain[1]


def test_a_forecaster_that_knows_something_helps(plain: tuple[float, float]) -> None:
    """Were pushes cut to nothing, every test of harmlessness would pass."""
    assert train("linear")[0] < plain[0]
