"""The training side: the `Nowcast` context manager, wiring, tasks and the command `nowcast`.

with Nowcast(model, optimizer, server="http://127.0.0.1:8440", max_steps=10_000):
    ...  # the training loop, unchanged
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer_worker.errors import BadArgument
    from trainer_worker.events import Event
    from trainer_worker.jump import Jump
    from trainer_worker.nowcast import Nowcast
    from trainer_worker.schedule import AdaptiveHorizon, BestAfterRecovery, FixedHorizon, PaperSchedule, Policy
    from trainer_worker.trials.guard import Guard
    from trainer_worker.weights.followers import WeightAverage

__all__ = [
    "AdaptiveHorizon",
    "BadArgument",
    "BestAfterRecovery",
    "Event",
    "FixedHorizon",
    "Guard",
    "Jump",
    "Nowcast",
    "PaperSchedule",
    "Policy",
    "WeightAverage",
]

_HOMES = {
    "AdaptiveHorizon": "schedule",
    "BadArgument": "errors",
    "BestAfterRecovery": "schedule",
    "Event": "events",
    "FixedHorizon": "schedule",
    "Guard": "trials.guard",
    "Jump": "jump",
    "Nowcast": "nowcast",
    "PaperSchedule": "schedule",
    "Policy": "schedule",
    "WeightAverage": "weights.followers",
}


def __getattr__(name: str) -> Any:
    """Import public names on first use: torch and httpx take a second, which `nowcast --help` does not have."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
