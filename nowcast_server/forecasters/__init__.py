"""Forecasters: from a context of snapshots to the weights some intervals ahead.

forecaster = load_forecaster("nino", checkpoint="nino.safetensors")
forecasts = forecaster.forecast(wiring, states, horizons=(1, 5, 40))  # (3, n)
"""

from nowcast_server.forecasters.base import Forecaster
from nowcast_server.forecasters.registry import FORECASTERS, load_forecaster, register

__all__ = ["FORECASTERS", "Forecaster", "load_forecaster", "register"]
