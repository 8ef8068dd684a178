"""A CUDA device: its memory budget for forecasts and snapshots, which stay there for the next nowcast; whether it still works."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from nowcast_server.jobs.budget import Budget
from nowcast_server.jobs.history import Context
from nowcast_server.streams import own_stream, wait

SHARE: Final = 0.9
"""Of the memory that is free at the start, for snapshots and forecasts; the rest is for what allocating and libraries waste."""

OWNER: Final = "device"  # in a tenant's place: snapshots of all tenants lie there, as long as there is room


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
        self.memory = Budget(limit_bytes or int(SHARE * torch.cuda.mem_get_info(device)[0]))
        self.uploads = 0  # snapshots so far
        self._lock = threading.RLock()
        self._kept: dict[int, _Kept] = {}  # by serial, the one used longest ago first

    def free(self) -> None:
        """Let go of whatever is not in use: a forecast has found less memory than was promised."""
        with self._lock:
            self._evict(self.memory.limit_bytes)
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
            rows = dict(zip(context.serials, context.states, strict=True))
            new_bytes = working_bytes + sum(row.nbytes for serial, row in rows.items() if serial not in self._kept)
            resting = [kept.size_bytes for serial, kept in self._kept.items() if not kept.users and serial not in rows]
            if new_bytes > self.memory.left_bytes() + sum(resting):
                return None
            taken = []
            for serial, row in rows.items():
                kept = self._kept.pop(serial, None) or _Kept(row.nbytes)
                self._kept[serial] = kept  # now the one used last
                kept.users += 1
                taken.append(kept)
            self._evict(new_bytes)
            self.memory.take(OWNER, new_bytes)
            return taken

    def give_back(self, taken: Sequence[_Kept], working_bytes: int) -> None:
        with self._lock:
            self.memory.give(OWNER, working_bytes)
            for kept in taken:
                kept.users -= 1
            for serial in [serial for serial, kept in self._kept.items() if not kept.users and kept.values is None]:
                self.memory.give(OWNER, self._kept.pop(serial).size_bytes)  # it never came

    def _evict(self, wanted_bytes: int) -> None:
        """Let go of snapshots that nobody reads, until so many bytes are left, or none of them is."""
        for serial in [serial for serial, kept in self._kept.items() if not kept.users]:
            if self.memory.left_bytes() >= wanted_bytes:
                return
            self.memory.give(OWNER, self._kept.pop(serial).size_bytes)


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
