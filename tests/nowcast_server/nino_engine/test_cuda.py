"""The engine on a CUDA device. No machine of this project has had one: these tests say what must hold there."""

import pytest
import torch
from networks import random_checkpoint, random_states
from wirings import transformer_wiring

from nowcast_server.forecasters.learned import Nino

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def test_a_forecast_leaves_the_default_stream_alone() -> None:
    """Embedded beside a training, each forecast would hold up the steps that come after it."""
    wiring, forecaster = transformer_wiring(), Nino(random_checkpoint(), device="cuda")
    states = random_states(wiring)
    forecaster.forecast(wiring, states, (1,))
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(2_000_000_000)  # the training has a second's work queued
    begun.record()
    forecaster.forecast(wiring, states, (1,))
    assert not begun.query()  # the forecast is there, and the training still at what it had before
    ended.record()
    ended.synchronize()
