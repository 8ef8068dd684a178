"""A CUDA device: its memory budget for forecasts and snapshots, which stay there for the next nowcast; whether it still works."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from nowcast_server.jobs.history import Context
from nowcast_server.streams import own_stream, wait
from protos.errors import OutOfMemoryBudget

SHARE: Final = 0.9
"""Of the memory that is free at the start, for snapshots and forecasts; the rest is for what allocating and libraries waste."""


def is_short(error: Exception) -> bool:
    """Whether memory is what lacked. Libraries on a device allocate by themselves, and say so in words of their own."""
    said = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words in str(error) for words in said)


@dataclass
class _Kept:
    """A snapshot on the device, or on its way there."""

    size_bytes: int
    users: int = 0  # forecasts that read it now
    values: Tensor | None = None  # None before it is there


class Accelerator:
    """Any thread may use it.

    Of the device's memory `limit_bytes` are for snapshots and forecasts, the weights of forecasters, which are there, not counted;
    None for most of what is free. `on_lost` is told why, if this process cannot use the device any more.
    """

    def __init__(
        self, device: torch.device, *, limit_bytes: int | None, on_lost: Callable[[BaseException], None] = lambda _: None
    ) -> None:
        self.device, self.on_lost = device, on_lost
        self.limit_bytes = limit_bytes or int(SHARE * torch.cuda.mem_get_info(device)[0])
        self.uploads = 0  # snapshots so far
        self._lock = threading.RLock()
        self._kept: dict[int, _Kept] = {}  # by serial, the one used longest ago first
        self._working_bytes = 0

    @property
    def used_bytes(self) -> int:
        """Of snapshots, and promised to forecasts under way."""
        with self._lock:
            return self._working_bytes + sum(kept.size_bytes for kept in self._kept.values())

    def check(self, size_bytes: int, *, what: str) -> None:
        """Raise OutOfMemoryBudget if so many bytes could never be had."""
        if size_bytes > self.limit_bytes:
            detail = f"{what} needs {size_bytes} bytes on the device; there are {self.limit_bytes} in all: try 16-bit snapshots"
            raise OutOfMemoryBudget(detail, needed_bytes=size_bytes, limit_bytes=self.limit_bytes)

    def free(self) -> None:
        """Let go of whatever is not in use: a forecast has found less memory than was promised."""
        with self._lock:
            self._evict(0)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def lost(self) -> bool:
        """Whether the device fails whatever it is asked: after some errors CUDA does, until the process ends."""
        try:
            torch.ones(1, device=self.device).sum().item()
        except RuntimeError as error:
            return not is_short(error)
        return False

    def take(self, context: Context, working_bytes: int) -> list[_Kept] | None:
        """The snapshots of a forecast, and memory for it to work in; None if others have it now."""
        with self._lock:
            others = sum(kept.size_bytes for serial, kept in self._kept.items() if kept.users and serial not in context.serials)
            if others + self._working_bytes + sum(row.nbytes for row in context.states) + working_bytes > self.limit_bytes:
                return None
            self._working_bytes += working_bytes
            taken = []
            for serial, row in zip(context.serials, context.states, strict=True):
                kept = self._kept.pop(serial, None) or _Kept(row.nbytes)
                self._kept[serial] = kept  # now the one used last
                kept.users += 1
                taken.append(kept)
            self._evict(self.limit_bytes)
            return taken

    def give_back(self, taken: Sequence[_Kept], working_bytes: int) -> None:
        with self._lock:
            self._working_bytes -= working_bytes
            for kept in taken:
                kept.users -= 1
            self._kept = {serial: kept for serial, kept in self._kept.items() if kept.users or kept.values is not None}

    def _evict(self, limit_bytes: int) -> None:
        """Let go of snapshots that nobody reads, until no more than so many bytes are used, or none is left."""
        used_bytes = self.used_bytes
        for serial in [serial for serial, kept in self._kept.items() if not kept.users]:
            if used_bytes <= limit_bytes:
                return
            used_bytes -= self._kept.pop(serial).size_bytes


class Reservation:
    """What one forecast takes of a device: its snapshots, and `working_bytes` besides. Any thread may use it."""

    def __init__(self, accelerator: Accelerator, context: Context, working_bytes: int) -> None:
        self.accelerator, self._context, self._working_bytes = accelerator, context, working_bytes
        self._kept: list[_Kept] | None = None

    def begin(self) -> bool:
        """Take the memory; False if other forecasts have it now."""
        self._kept = self.accelerator.take(self._context, self._working_bytes)
        return self._kept is not None

    def end(self) -> None:
        """Give back what was taken."""
        if self._kept is not None:
            self.accelerator.give_back(self._kept, self._working_bytes)
            self._kept = None

    @contextmanager
    def states(self) -> Iterator[tuple[Tensor, ...]]:
        """The context's snapshots on the device; work within is queued on a stream of our own. Only after `begin`."""
        assert self._kept is not None
        accelerator, there = self.accelerator, list[Tensor]()
        with own_stream(accelerator.device, shared=False):
            for kept, row in zip(self._kept, self._context.states, strict=True):
                if kept.values is None:
                    kept.values = row.to(accelerator.device, non_blocking=True, copy=True)
                    accelerator.uploads += 1
                there.append(kept.values)
            wait(accelerator.device)  # once this forecast is given up, the rows may be received into
            yield tuple(there)
