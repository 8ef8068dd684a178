"""A CUDA device: its memory budget for forecasts and snapshots, which stay there for the next nowcast; whether it still works."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from nowcast_server.jobs.budget import Budget
from nowcast_server.jobs.history import Context
from nowcast_server.streams import own_stream, wait

SHARE: Final = 0.9  # of the memory that is free at the start; the rest is for what allocating and libraries waste
MOST: Final = 8192  # snapshots kept: small ones would never fill a large device, and all are looked through to make room
OWNER: Final = "device"  # in a tenant's place: snapshots of all tenants lie there, as long as there is room


def is_short(error: Exception) -> bool:
    """Whether memory is what lacked. Libraries on a device allocate by themselves, and say so in words of their own."""
    said = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words in str(error) for words in said)


@dataclass
class Kept:
    size_bytes: int
    users: int = 0  # forecasts that read it now
    values: Tensor | None = None  # None before it is there


class Accelerator:
    """Any thread may use it. `limit_bytes` are for snapshots and forecasts, besides forecasters' weights; None for most of what is
    free. `on_lost` is told why, if this process cannot use the device any more.
    """

    def __init__(
        self, device: torch.device, *, limit_bytes: int | None, on_lost: Callable[[BaseException], object] = lambda _: None
    ) -> None:
        self.device, self.on_lost = device, on_lost
        self.memory = Budget(limit_bytes or int(SHARE * torch.cuda.mem_get_info(device)[0]))
        self.uploads = 0  # snapshots so far
        self.lock = threading.Lock()
        self.kept: dict[int, Kept] = {}  # by serial, the one used longest ago first

    def free(self) -> None:
        """Let go of whatever is not in use: a forecast has found less memory than was promised."""
        with self.lock:
            self.evict(self.memory.limit_bytes)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def lost(self) -> bool:
        """Whether the device fails whatever it is asked: after some errors CUDA does, until the process ends."""
        try:
            torch.ones(1, device=self.device).sum().item()
        except RuntimeError as error:
            return not is_short(error)
        return False

    def evict(self, wanted_bytes: int) -> None:
        """Let go of snapshots that nobody reads, until so many bytes are left and few enough are kept; with the lock held."""
        for serial in tuple(self.kept):
            if self.memory.left_bytes() >= wanted_bytes and len(self.kept) <= MOST:
                return
            if not self.kept[serial].users:
                self.memory.give(OWNER, self.kept.pop(serial).size_bytes)


class Reservation:
    """What one forecast takes of a device: its snapshots, and `working_bytes` besides. Any thread may use it."""

    def __init__(self, accelerator: Accelerator, context: Context, working_bytes: int) -> None:
        self.accelerator, self._context, self._working_bytes = accelerator, context, working_bytes
        self._kept: list[Kept] | None = None

    def begin(self, *, also: Callable[[], bool] = lambda: True) -> bool:
        """Take the memory; False if other forecasts have it now, or what is wanted `also` is not to be had."""
        device, rows = self.accelerator, dict(zip(self._context.serials, self._context.states, strict=True))
        with device.lock:
            new_bytes = self._working_bytes + sum(row.nbytes for serial, row in rows.items() if serial not in device.kept)
            resting = (kept.size_bytes for serial, kept in device.kept.items() if not kept.users and serial not in rows)
            left_bytes = device.memory.left_bytes()
            if (new_bytes > left_bytes and new_bytes > left_bytes + sum(resting)) or not also():
                return False
            self._kept = [device.kept.pop(serial, Kept(row.nbytes)) for serial, row in rows.items()]
            for serial, kept in zip(rows, self._kept, strict=True):
                kept.users += 1
                device.kept[serial] = kept  # now the one used last
            device.evict(new_bytes)
            device.memory.take(OWNER, new_bytes)
            return True

    def end(self) -> None:
        """Give back what was taken."""
        device, taken, self._kept = self.accelerator, self._kept, None
        if taken is None:
            return
        with device.lock:
            device.memory.give(OWNER, self._working_bytes)
            for serial, kept in zip(self._context.serials, taken, strict=True):
                kept.users -= 1
                if not kept.users and kept.values is None:
                    device.memory.give(OWNER, device.kept.pop(serial).size_bytes)  # it never came

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
