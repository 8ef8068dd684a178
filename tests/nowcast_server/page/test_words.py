"""Steps saved: an estimate that says how far it can be trusted, or nothing."""

import math
import random

import pytest

from nowcast_server.web.page import words
from nowcast_server.web.page.words import Curve, Saved, steps_saved


def curve(last: int, *, speed: float = 1.0, scatter: float = 0.0, seed: int = 0) -> Curve:
    """A loss that falls as one over the steps, told every 20."""
    draw = random.Random(seed)
    return [(step, 100 / (50 + speed * step) + draw.gauss(0, scatter)) for step in range(20, last + 1, 20)]


def test_estimate_and_its_range() -> None:
    """The figure would be wrong where it is simplest: of a run twice as fast; or chance be sold as steps saved."""
    saved = steps_saved(curve(1000, speed=2.0), curve(3000), job="shadow")
    assert saved is not None
    assert saved.job == "shadow"
    assert saved.steps == pytest.approx(1000, rel=0.06)
    assert saved.low <= saved.steps <= saved.high
    pairs = [(curve(1000, scatter=0.01, seed=seed), curve(3000, scatter=0.01, seed=100 + seed)) for seed in range(100)]
    found = [saved for one, other in pairs if (saved := steps_saved(one, other, job="shadow"))]
    assert len(found) == 100
    assert sum(saved.low <= 0 <= saved.high for saved in found) >= 90
    assert abs(sum(saved.steps for saved in found)) / 100 < 25


def test_no_more_is_said_than_the_other_run_shows() -> None:
    """A run ahead of a young one would be called slow or fast by where the other happens to be; or a known bound be withheld."""
    assert steps_saved(curve(1000), curve(400), job="shadow") is None
    assert steps_saved(curve(1000), curve(100), job="shadow") is None
    saved = steps_saved(curve(1000, speed=3.0), curve(2000), job="shadow")
    assert saved is not None
    assert math.isinf(saved.high)
    assert saved.low == 2000 - 960


@pytest.mark.parametrize(
    ("estimate", "shown"),
    [
        (Saved(420.0, 390.0, 450.0, "shadow"), "+420 (+390 to +450)"),
        (Saved(420.0, 390.0, math.inf, "shadow"), "at least 390"),
        (Saved(-1298.0, -1400.0, -1200.0, "shadow"), "none: took 1,298 steps more (1,200 to 1,400)"),
        (Saved(0.0, -1298.0, math.inf, "shadow"), "not known; took at most 1,298 steps more"),
    ],
)
def test_a_run_that_took_longer_is_said_to_have(estimate: Saved, shown: str) -> None:
    """Steps saved below zero have to be read twice."""
    assert words.saved(estimate) == shown
