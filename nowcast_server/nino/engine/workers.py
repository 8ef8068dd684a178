"""Threads that share the units of a forecast, each of which computes single-threaded.

Torch's own threads split every operation and wait for each other after it. On tiles that fit the cache that cost about a tenth of
the time on a quiet machine; on a busy one, where they wait spinning, three times the processor time. Here each thread walks a unit
of its own. A unit's result does not depend on the thread that made it.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import Final, TypeVar

import torch

from nowcast_server.interruption import interruptible_items

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD: Final = 3
"""Units queued for each thread: enough that none waits, few enough that results do not pile up."""

CALLS: Final = 64
"""Forecasts that may be under way at once; more wait their turn."""

_POOLS: Final[dict[str, ThreadPoolExecutor]] = {}
_START: Final = threading.Lock()

os.register_at_fork(after_in_child=_POOLS.clear)  # threads do not survive a fork


def aside(function: Callable[[], Result]) -> Result:
    """Call `function` in a thread in which torch is single-threaded, and wait for it.

    What coordinates the workers computes little: torch's own threads, once woken for it, would spin on the workers' cores.
    """
    return _pool("call", CALLS).submit(copy_context().run, function).result()


def in_order(function: Callable[[Item], Result], items: Iterable[Item], *, threads: int) -> Iterator[Result]:
    """Map `function` over `items`, taken a few ahead, on several threads; results come in the order of the items.

    It computes with gradients off and torch single-threaded; a single thread is the calling one, which `aside` has made so. The
    first error is raised when its turn comes; items not yet begun are then dropped, as they are when it is interrupted.
    """
    items = interruptible_items(items)
    if threads == 1:
        yield from map(function, items)
        return
    pool, pending = _pool(f"unit-{threads}", threads), deque[Future[Result]]()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= threads * AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


def run(function: Callable[[Item], object], items: Iterable[Item], *, threads: int) -> None:
    """`in_order` for what it does, not for what it returns."""
    for _ in in_order(function, items, threads=threads):
        pass


def _pool(name: str, threads: int) -> ThreadPoolExecutor:
    with _START:
        if name not in _POOLS:
            _POOLS[name] = ThreadPoolExecutor(threads, thread_name_prefix=f"nino-{name}", initializer=_single_threaded)
        return _POOLS[name]


def _single_threaded() -> None:
    torch.set_grad_enabled(False)
    # torch keeps the number for each thread apart, but what was set last is the default of threads to come: it is put back at once
    with _START:
        default = torch.get_num_threads()
        torch.set_num_threads(1)
        restore = threading.Thread(target=torch.set_num_threads, args=(default,))
        restore.start()
        restore.join()
