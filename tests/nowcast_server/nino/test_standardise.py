"""Standardisation: fitted tensor by tensor, and undone."""

import pytest
import torch

from nowcast_server.nino.standardise import EPSILON, Standardisation

STATES = torch.tensor([[1.0, 2.0, 10.0, 0.5], [3.0, 4.0, 30.0, 0.5]])  # (context, n)
SIZES = (2, 0, 1, 1)


def test_a_tensor_and_its_snapshots_are_scaled_together() -> None:
    """Parameters scaled one by one, or snapshot by snapshot, would lose what tells them apart."""
    fitted = Standardisation.fit(STATES, SIZES)
    assert torch.allclose(fitted.mean, torch.tensor([2.5, 2.5, 20.0, 0.5]))
    assert torch.allclose(fitted.scale, torch.tensor([STATES[:, :2].std(), STATES[:, :2].std(), 200**0.5, 0.0]))
    assert torch.allclose(fitted.apply(STATES)[:, 0], (STATES[:, 0] - 2.5) / (STATES[:, :2].std() + EPSILON))


def test_parameters_that_never_move_stay_finite() -> None:
    """Layer norm weights before the first step are all one: their standard deviation is zero."""
    fitted = Standardisation.fit(STATES, SIZES)
    assert not fitted.apply(STATES)[:, 3].any()
    assert (fitted.invert(torch.full((1, 4), 7.0))[:, 3] == 0.5).all()


@pytest.mark.parametrize("method", ["std", "std-param", "min-max"])
def test_inversion(method: str) -> None:
    """Forecasts would come back on another scale than the parameters'."""
    states = torch.randn(5, 40) * 3 + 1
    fitted = Standardisation.fit(states, (30, 10), method=method)
    assert torch.allclose(fitted.invert(fitted.apply(states)), states, atol=1e-4)


def test_other_methods() -> None:
    """Checkpoints with another `scaling` option would be fed on the wrong scale."""
    fitted = Standardisation.fit(STATES, SIZES, method="std-param")
    assert torch.allclose(fitted.mean, STATES.mean(0))
    assert torch.allclose(fitted.scale, STATES.std(0).clamp(min=0.01))
    fitted = Standardisation.fit(STATES, SIZES, method="min-max")
    assert torch.allclose(fitted.scale, torch.tensor([3.0, 3.0, 20.0, 0.01]))
    assert not fitted.mean.any()
