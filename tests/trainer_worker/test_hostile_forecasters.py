"""Forecasters that mean harm, or know nothing: what a guarded run loses to them. `bench/hostile.py` measures it at length."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from teacher_task import PROBE, VALIDATION, batch, loss, student

from trainer_worker import Guard, Nowcast

sys.path.append(str(Path(__file__).parents[2] / "bench"))

from hostile import HOSTILE, Endpoint

INTERVAL, STEPS = 20, 1000


def train(kind: str | None = None) -> tuple[float, dict[str, Any]]:
    """Validation loss over the last tenth of a run, and its summary."""
    model = student()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []

    def loop() -> None:
        for index in range(STEPS):
            optimizer.zero_grad()
            loss(model, batch(index)).backward()
            optimizer.step()
            if index >= 0.9 * STEPS and index % 5 == 0:
                losses.append(float(loss(model, VALIDATION).detach()))

    if kind is None:
        loop()
        return sum(losses) / len(losses), {}
    probe = lambda: loss(model, PROBE)  # noqa: E731
    with Nowcast(model, optimizer, server=Endpoint(kind), max_steps=STEPS, interval=INTERVAL, probe=probe) as nowcast:
        loop()
    return sum(losses) / len(losses), nowcast.summary()


@pytest.fixture(scope="module")
def plain() -> float:
    """The loss of the run without nowcasts."""
    torch.set_num_threads(1)
    return train()[0]


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_forecaster_costs_no_more_than_the_bound(plain: float, kind: str) -> None:
    """Switching nowcasts on must never be a bet on the forecaster."""
    struck, summary = train(kind)
    assert summary["nowcasts"]["rejected"] + summary["nowcasts"]["skipped"] > 0
    assert summary["cost_steps"] <= Guard().budget * STEPS
    assert struck <= 1.01 * plain
    if kind not in ("noise", "sign-flipped"):  # small ones are made up for within the window, and may stay
        assert summary["nowcasts"]["accepted"] == 0
