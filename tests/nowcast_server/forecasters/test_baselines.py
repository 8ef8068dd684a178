"""The forecasters without weights, against what they should say."""

import numpy as np
import pytest
import torch
from networks import mlp_wiring, random_states

from nowcast_server.forecasters import load_forecaster

WIRING = mlp_wiring(3, 4, 2)
HORIZONS = (1, 7, 40)


def test_last() -> None:
    """Skill would be measured against another forecast than "no change"."""
    states = random_states(WIRING)
    assert torch.equal(load_forecaster("last").forecast(WIRING, states, HORIZONS), states[-1].repeat(3, 1))


def test_average() -> None:
    """The weight-averaging baseline would be another, or depend on the horizon."""
    states = random_states(WIRING, context=4)
    forecasts = load_forecaster("average").forecast(WIRING, states, HORIZONS)
    assert torch.allclose(forecasts, states.mean(0).repeat(3, 1), atol=1e-6)


@pytest.mark.parametrize("context", [2, 3, 5, 8])
def test_linear_is_least_squares(context: int) -> None:
    """The extrapolation baseline would fit another line than numpy does, or extrapolate by the wrong count of intervals."""
    states = random_states(WIRING, context=context)
    slope, level = np.polynomial.polynomial.polyfit(np.arange(context), states.double().numpy(), 1)[::-1]
    expected = np.stack([level + slope * (context - 1 + horizon) for horizon in HORIZONS])
    assert np.allclose(load_forecaster("linear").forecast(WIRING, states, HORIZONS), expected, atol=1e-4)


def test_linear_leaves_alone_what_does_not_move() -> None:
    """Frozen parameters would drift by rounding, forty intervals far."""
    states = random_states(WIRING)[:1].repeat(5, 1)
    assert torch.equal(load_forecaster("linear").forecast(WIRING, states, HORIZONS), states[:3])
