"""Where units are computed: on the CPU's threads, or on a device that has the snapshots and keeps the forecasts.

On a device one thread queues all work on one stream, and nothing comes back to the host before the forecasts are made: snapshots
are packed, standardised and scattered there. Pieces are large, as each operation costs the host some 5 microseconds to queue.
"""

from collections.abc import Callable
from typing import ClassVar, Final

import torch

from nowcast_server.nino.engine.plan import Sizes
from nowcast_server.nino.engine.workers import run

DEVICE_SIZES: Final = Sizes(panel=1 << 20, tile=1 << 15, sources=1024, bundle=1 << 15, small=1 << 14)

ROWS: Final = 4096
"""Neurons that one thread updates at once."""


class Placement:
    """The CPU, with as many threads as torch has in the thread that makes it.

    Args:
        device: where units are computed, and snapshots and forecasts are.
    """

    sizes: ClassVar[Sizes] = Sizes()
    span: ClassVar[int] = 1 << 14
    """Weights of one snapshot that are summed up at once when scales are fitted."""
    unit_bytes: ClassVar[int] = 4 * 2**20
    """A panel's snapshots and forecasts, two tiles' buffers, and what products or the sums of a span need."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.threads = torch.get_num_threads()

    def each(self, function: Callable[[slice], object], count: int) -> None:
        """Call `function` for every run of `count` neurons."""
        run(function, [slice(start, min(start + ROWS, count)) for start in range(0, count, ROWS)], threads=self.threads)


class DevicePlacement(Placement):
    """A device besides the CPU; everything is queued by the calling thread."""

    sizes: ClassVar[Sizes] = DEVICE_SIZES
    span: ClassVar[int] = 1 << 21
    unit_bytes: ClassVar[int] = 192 * 2**20

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.threads = 1

    def each(self, function: Callable[[slice], object], count: int) -> None:
        function(slice(0, count))


def placement(device: torch.device) -> Placement:
    return Placement(device) if device.type == "cpu" else DevicePlacement(device)
