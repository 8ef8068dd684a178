"""Forecasters that mean harm, or know nothing, from `bench/hostile.py`, which measures at length what a run loses to them."""

import pytest
import scripts
import torch
from teacher_task import train

STEPS, INTERVAL = 600, 8
hostile = scripts.load("bench/hostile.py")


def course(kind: str | None) -> tuple[float, float]:
    """Mean and highest validation loss over the last tenth of a run, and after its first."""
    options = {"server": hostile.Endpoint(kind)} if kind else None
    losses, summary = train(STEPS, lr=3e-3, options=options, judged=range(STEPS // 10, STEPS, 10))
    if kind:
        assert summary["interval"] == INTERVAL
        assert summary["nowcasts"]["skipped" if kind == "nan" else "used"] > 50
    last = losses[-STEPS // 100 :]
    return sum(last) / len(last), max(losses)


@pytest.fixture(scope="module")
def plain() -> tuple[float, float]:
    """The losses of the run without nowcasts."""
    torch.set_num_threads(1)
    return course(None)


@pytest.mark.parametrize("kind", hostile.HOSTILE)
def test_a_hostile_forecaster_costs_next_to_nothing(plain: tuple[float, float], kind: str) -> None:
    """Switching nowcasts on must never be a bet on the forecaster."""
    struck, highest = course(kind)
    assert struck <= 1.01 * plain[0]
    assert highest <= 1.05 * plain[1]


def test_a_forecaster_that_knows_something_helps(plain: tuple[float, float]) -> None:
    """Were pushes cut to nothing, every test of harmlessness would pass."""
    assert course("linear")[0] < plain[0]
