"""Page-locked host memory, from which a CUDA device copies asynchronously; a CPU needs none.

torch's own page-locked memory comes in powers of two and is never given back: a budget of 8 GiB could lock 16. Here a block has the
size that was asked for, to the page, and is unlocked when its last tensor is gone.
"""

import math
import mmap
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any, Final, Protocol

import numpy as np
import torch
from torch import Tensor

from nowcast_server.logs import log


class Locks(Protocol):
    """Locks pages in memory, and unlocks them; raises RuntimeError if it cannot."""

    def lock(self, address: int, size_bytes: int) -> None: ...
    def unlock(self, address: int) -> None: ...


class CudaLocks:
    """By the CUDA runtime, for all of this process's devices."""

    def __init__(self) -> None:
        self._runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]  # torch leaves it unannotated

    def lock(self, address: int, size_bytes: int) -> None:
        torch.cuda.check_error(self._runtime.cudaHostRegister(address, size_bytes, FOR_ALL_DEVICES))

    def unlock(self, address: int) -> None:
        torch.cuda.check_error(self._runtime.cudaHostUnregister(address))


FOR_ALL_DEVICES: Final = 1
"""`cudaHostRegisterPortable`."""


class PinnedMemory:
    """Tensors in page-locked memory. Any thread may use it.

    Locking takes some 0.2 s a GB, so a thread of its own does it: until then a tensor is memory like any other, and it stays that
    if the system lets no more be locked.

    Args:
        locks: what locks.
    """

    def __init__(self, locks: Locks) -> None:
        self._locks = locks
        self._work: Final[SimpleQueue[Callable[[], None]]] = SimpleQueue()
        self.used_bytes = 0
        """Locked now."""
        threading.Thread(target=self._run, name="pin", daemon=True).start()

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor with whatever its memory held.

        Raises:
            RuntimeError: the machine has not the memory.
        """
        size_bytes = math.prod(shape) * dtype.itemsize
        if not size_bytes:
            return torch.empty(tuple(shape), dtype=dtype)
        try:
            pages = mmap.mmap(-1, size_bytes)
        except OSError as error:
            raise RuntimeError(f"no memory for {size_bytes} bytes: {error}") from error
        array = np.frombuffer(pages, dtype=np.uint8)
        block = _Block(pages, array.ctypes.data)
        self._work.put(partial(self._lock, block))
        # torch holds the array for as long as any tensor sees the memory; pages must be unlocked before they are unmapped
        weakref.finalize(array, self._work.put, partial(self._unlock, block)).atexit = False
        return torch.from_numpy(array).view(dtype).view(tuple(shape))

    def settle(self) -> None:
        """Wait until all that was taken is locked, and all that was let go unlocked."""
        done = threading.Event()
        self._work.put(done.set)
        done.wait()

    def _run(self) -> None:
        while True:
            self._work.get()()

    def _lock(self, block: "_Block") -> None:
        try:
            self._locks.lock(block.address, len(block.pages))
        except RuntimeError as error:
            log.warning("%d bytes cannot be locked in memory, uploads to the device will be slower: %s", len(block.pages), error)
            return
        block.locked = True
        self.used_bytes += len(block.pages)

    def _unlock(self, block: "_Block") -> None:
        if block.locked:
            self._locks.unlock(block.address)
            self.used_bytes -= len(block.pages)


@dataclass(eq=False)
class _Block:
    """Memory of one tensor; unmapped when this is gone."""

    pages: mmap.mmap
    address: int
    locked: bool = False
