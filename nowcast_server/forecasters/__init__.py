"""Forecasters: from a context of snapshots to the weights some intervals ahead."""

from nowcast_server.forecasters.base import Forecaster
from nowcast_server.forecasters.registry import FORECASTERS, load_forecaster, register

__all__ = ["FORECASTERS", "Forecaster", "load_forecaster", "register"]
