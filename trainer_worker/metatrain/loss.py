"""What a fit minimises, and how a model of either kind forecasts a batch of windows."""

import torch
from torch import Tensor, nn

from trainer_worker.metatrain.folded import forecast_change
from trainer_worker.metatrain.model import NiNo, Wnn
from trainer_worker.metatrain.windows import Windows

STILL = 0.02
"""Added to a window's own movement before dividing by it, in standard deviations of a tensor."""


def predict(model: nn.Module, windows: Windows, *, signs: Tensor | None = None) -> Tensor:
    """How far the model says each weight moves: (windows, m, horizons).

    Args:
        model: a `NiNo` or a `Wnn`.
        windows: to forecast.
        signs: (windows, laplacian) of +-1, which the Laplacian features are multiplied by.
    """
    if isinstance(model, NiNo):
        features = windows.plan.node_pe.expand(len(windows.z), -1, -1)
        features = features if signs is None else features * signs[:, None]
        return forecast_change(model, windows.plan, windows.z, features, horizons=windows.horizons)
    assert isinstance(model, Wnn)
    states = windows.z[..., windows.plan.weights].transpose(1, 2)  # (windows, m, context)
    types = windows.plan.edge_type.expand(len(states), -1)
    forecast: Tensor = model(states.flatten(0, 1), types.flatten(), horizons=windows.horizons)
    return torch.unflatten(forecast, 0, types.shape) - windows.last[..., None]


def mean_error(change: Tensor, windows: Windows) -> Tensor:
    """Mean absolute error over the weights: (windows, horizons), 0 where the future is not known."""
    return (change - windows.change).abs().mean(1) * windows.known


def loss(change: Tensor, windows: Windows, *, evenness: float) -> Tensor:
    """Mean absolute error over weights, known horizons and windows.

    Args:
        change: (windows, m, horizons) forecast.
        windows: the truth.
        evenness: 0 counts every window alike in standard deviations, so that those with most movement, early in training, have
            most weight; 1 counts errors relative to the window's own movement.
    """
    count = windows.known.sum(1).clamp(min=1)
    error = mean_error(change, windows).sum(1) / count
    movement = mean_error(torch.zeros((), dtype=change.dtype), windows).sum(1) / count
    return (error / (movement + STILL) ** evenness).mean()
