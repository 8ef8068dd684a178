"""Where units are computed: on the threads of the CPU, each of which computes single-threaded, or on a device.

Torch's own threads split every operation and wait for each other after it. On tiles that fit the cache that cost about a tenth of
the time on a quiet machine; on a busy one, where they wait spinning, three times the processor time. Here each thread walks a unit
of its own. A unit's result does not depend on the thread that made it.

On a device one thread queues all work on one stream, and nothing comes back to the host before the forecasts are made: snapshots
are packed, standardised and scattered there. Pieces are large, as each operation costs the host some 5 microseconds to queue.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Final, TypeVar

import torch
from torch import Tensor

from nowcast_server.interruption import interruptible_items

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD: Final = 3  # units queued for each thread: enough that none waits, few enough that results do not pile up
CALLS: Final = 64  # forecasts that may be under way at once; more wait their turn
_POOLS: Final[dict[str, ThreadPoolExecutor]] = {}
_START: Final = threading.Lock()

os.register_at_fork(after_in_child=_POOLS.clear)  # threads do not survive a fork


def aside(function: Callable[[], Result]) -> Result:
    """Call `function` where torch is single-threaded, and wait for it: torch's own threads would spin on the workers' cores."""
    return _pool("call", CALLS).submit(copy_context().run, function).result()


def in_order(function: Callable[[Item], Result], items: Iterable[Item], *, threads: int) -> Iterator[Result]:
    """Map `function` over `items`, taken a few ahead, on several threads; results come in the order of the items. It computes with
    gradients off and torch single-threaded; a single thread is the calling one, which `aside` has made so. The first error is
    raised when its turn comes; items not yet begun are then dropped, as they are when it is interrupted.
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
    deque(in_order(function, items, threads=threads), maxlen=0)


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


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large the pieces of the work are, in edges."""

    # of a panel. On a CPU so large that its fixed cost vanishes, so small that its standardised weights (640 KB) stay in the cache.
    panel: int = 32_768
    tile: int = 1024  # of a tile, whose two buffers of H floats (1 MB for H = 128) should fit a core's L2 cache
    sources: int = 256  # of a panel at most, unless its targets are few
    bundle: int = 4096  # of a bundle
    small: int = 1024  # of a dense block that is bundled, at most
    span: int = 1 << 14  # weights of one snapshot that are summed up at once when scales are fitted
    rows: int = 4096  # neurons that one thread updates at once
    # a panel's snapshots and forecasts, two tiles' buffers, and what products or the sums of a span need
    unit_bytes: int = 4 * 2**20


CPU_SIZES: Final = Sizes()
TILE_NUMBERS: Final = 1 << 22
DEVICE_SIZES: Final = Sizes(
    panel=1 << 20, tile=1 << 16, sources=1024, bundle=1 << 15, small=1 << 14, span=1 << 21, rows=1 << 62, unit_bytes=192 * 2**20
)


def sizes_for(device: torch.device, *, hidden: int) -> Sizes:
    """What suits a device: two tiles' buffers (34 MB) stay in most GPUs' L2 cache; smaller ones outrun the host's queueing."""
    return CPU_SIZES if device.type == "cpu" else replace(DEVICE_SIZES, tile=max(1, TILE_NUMBERS // hidden))


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a forecast is computed, and snapshots and results are."""

    device: torch.device
    threads: int
    sizes: Sizes

    def each(self, function: Callable[[slice], object], count: int) -> None:
        """Call `function` for every run of `count` neurons."""
        rows = self.sizes.rows
        run(function, [slice(start, min(start + rows, count)) for start in range(0, count, rows)], threads=self.threads)


def with_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A value of nested dataclasses and tuples, with each tensor in it replaced by what `change` makes of it."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple):
        return tuple(with_tensors(item, change) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: with_tensors(getattr(value, field.name), change) for field in fields(value)})
    return value
