"""The training side: the `Nowcast` context manager, wiring, tasks and the command `nowcast`.

with Nowcast(model, optimizer, max_steps=10_000):
    ...  # the training loop, unchanged
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer_worker.endpoints.server import Server
    from trainer_worker.errors import BadArgument
    from trainer_worker.events import Event
    from trainer_worker.nowcast import Nowcast
    from trainer_worker.push import Push

__all__ = ["BadArgument", "Event", "Nowcast", "Push", "Server"]

_HOMES = {"BadArgument": "errors", "Event": "events", "Nowcast": "nowcast", "Push": "push", "Server": "endpoints.server"}


def __getattr__(name: str) -> Any:
    """Import public names on first use: importing torch would slow down `nowcast --help`."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
