"""Where units are computed: on the CPU's threads, or on a device that has the snapshots and keeps the forecasts.

On a device one thread queues all work on one stream, and nothing comes back to the host before the forecasts are made: snapshots
are packed, standardised and scattered there. Pieces are large, as each operation costs the host some 5 microseconds to queue.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch

from nowcast_server.nino.engine.workers import run


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large the pieces of the work are, in edges."""

    # of a panel. On a CPU large enough that its fixed cost vanishes, small enough that its standardised weights (640 KB) stay in
    # the cache.
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
DEVICE_SIZES: Final = Sizes(
    panel=1 << 20, tile=1 << 15, sources=1024, bundle=1 << 15, small=1 << 14, span=1 << 21, rows=1 << 62, unit_bytes=192 * 2**20
)


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
