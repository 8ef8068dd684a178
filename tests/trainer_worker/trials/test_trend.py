"""Courses drawn on: what they say, and how far they can be trusted."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from trainer_worker.trials.trend import Trend

STEPS = range(500, 1001, 100)


@pytest.mark.parametrize("loss", [lambda step: 3 * step**-0.3, lambda step: 2 - math.log(step), lambda step: -5.0])
def test_a_training_curve_is_drawn_on(loss: Callable[[int], float]) -> None:
    """Every verdict is against this."""
    trend = Trend.through([(step, loss(step)) for step in STEPS])
    assert trend.at(1200) == pytest.approx(loss(1200), rel=1e-9)
    assert trend.variance == pytest.approx(0, abs=1e-20)
    assert trend.worth(10, end=4000) == pytest.approx((loss(3990) - loss(4000)) / abs(loss(4000)), rel=0.01)


def test_a_loss_that_rises_is_not_drawn_on() -> None:
    """A run that does worse would lower the bar for jumps."""
    assert Trend.through([(100, 1.0), (200, 1.1)]).at(1000) == pytest.approx(math.sqrt(1.1))


def test_one_loss_is_a_course() -> None:
    """The first jump of a short period has no more."""
    trend = Trend.through([(100, 0.5)])
    assert (trend.at(300), trend.variance) == (pytest.approx(0.5), None)


@pytest.mark.parametrize("loss", [lambda step: 8 * step**-0.3, lambda step: 2 - math.log(step)])
def test_its_error_is_the_scatter_of_what_it_is_compared_with(loss: Callable[[int], float]) -> None:
    """Too small, and chance undoes good jumps; too large, and bad ones stay."""
    rng = np.random.Generator(np.random.PCG64(0))
    noise = 0.03 * rng.standard_normal((2000, len(STEPS) + 1))
    trends = [Trend.through([(step, loss(step) + each) for step, each in zip(STEPS, row, strict=False)]) for row in noise]
    gaps = loss(1150) + noise[:, -1] - [trend.at(1150) for trend in trends]
    variance = float(np.mean([trend.variance for trend in trends]))
    errors = [trend.error(1150, variance=variance) for trend in trends]
    assert np.mean(errors) == pytest.approx(np.std(gaps), rel=0.1)
