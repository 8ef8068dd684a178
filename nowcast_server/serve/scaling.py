"""Scaling: how many replicas the waiting forecasts need."""

from typing import Any

from ray.serve.config import AutoscalingContext

AT_HAND = "forecasts"  # what a replica reports: its forecasts that wait or run


def forecasts_at_hand(context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """Replicas so that each has `target_ongoing_requests` forecasts at hand; Serve applies bounds and delays."""
    reported = (context.aggregated_metrics or {}).get(AT_HAND, {})
    target = context.config.get_target_ongoing_requests() if context.config else 1.0
    return sum(reported.values()) / target, {}
