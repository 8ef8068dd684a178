"""Progress from a Ray worker to the waiting command. Imports nothing heavy, so that its actor starts fast."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

Listener = Callable[[dict[str, Any]], None]
POLL_S = 0.3


class Mailbox:
    """An actor that carries progress from rank 0 to the command that started the run."""

    def __init__(self) -> None:
        self._news: list[dict[str, Any]] = []

    def put(self, news: dict[str, Any]) -> None:
        """Called by the worker."""
        self._news.append(news)

    def take(self) -> list[dict[str, Any]]:
        """What came since the last call."""
        news, self._news = self._news, []
        return news


@contextmanager
def open_mailbox(listen: Listener) -> Iterator[Any]:
    """An actor handle for workers to `put.remote` their news to; `listen` hears it, on another thread, until the end.

    The actor lives on this process's node, so that no other can take it along; if it is lost nevertheless, so is progress, and
    nothing else.
    """
    here: Any = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)  # Any: ray annotates less
    mailbox: Any = ray.remote(num_cpus=0, scheduling_strategy=here)(Mailbox).remote()
    over = threading.Event()

    def poll() -> None:
        while not over.wait(POLL_S):
            deliver()

    def deliver() -> None:
        with suppress(RayActorError):
            for news in ray.get(mailbox.take.remote()):
                listen(news)

    thread = threading.Thread(target=poll, name="nowcast-progress", daemon=True)
    thread.start()
    try:
        yield mailbox
    finally:
        over.set()
        thread.join()
        deliver()
        ray.kill(mailbox)
