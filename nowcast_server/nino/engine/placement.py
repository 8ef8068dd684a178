"""Where units are computed, and how snapshots get there and forecasts back.

On a CPU a panel is packed straight from the snapshots into the cache. On CUDA the snapshots stay in host memory: each of a few
threads packs a panel into pinned memory, has it copied, computed and copied back on a stream of its own, and scatters the
forecasts; while one thread's panel is computed, the others' are under way, so that copies and packing hide behind arithmetic.

An estimate on paper, as no GPU has run this: an edge needs three products of 128 x 128, 98 kFLOP, and some fifteen passes over
its 512 bytes. An A100 (19.5 TFLOP/s in float32, 1.5 TB/s) takes about 5 ns for the products and 7 ns for the passes, so 80 M
edges/s or a 1B-parameter network in 13 s. Copies are 3 x 20 bytes an edge in and 4 an edge and horizon out, 6 GB/s, a third of
what PCIe 4 gives; packing at some 30 M edges/s a thread needs the four threads it has.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar, Final

import torch
from torch import Tensor

from nowcast_server.nino.engine.plan import Sizes
from nowcast_server.nino.engine.workers import run

CUDA_SIZES: Final = Sizes(panel=1 << 20, tile=1 << 16, sources=1024, bundle=1 << 16, small=1 << 14)
CUDA_THREADS: Final = 4

ROWS: Final = 4096
"""Neurons that one thread updates at once."""


class Placement:
    """The CPU, with as many threads as torch has in the thread that makes it.

    Args:
        device: where units are computed.
    """

    sizes: ClassVar[Sizes] = Sizes()

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.threads = torch.get_num_threads()

    def pack(self, views: Sequence[Tensor], shape: tuple[int, ...]) -> Tensor:
        """Stack `views`, one for each snapshot, along axis 1: `shape` float32 on the device."""
        packed = torch.empty(shape, dtype=torch.float32)
        for index, view in enumerate(views):
            packed[:, index] = view
        return packed

    def fetch(self, forecasts: Tensor, device: torch.device) -> Tensor:
        """Forecasts of a unit, on `device`, where they are to be scattered."""
        del device
        return forecasts

    def hand_over(self, *tensors: Tensor) -> None:
        """Called within a unit with what the coordinating thread will read."""

    @contextmanager
    def unit(self) -> Iterator[None]:
        """Within it, a thread computes one unit; what it computed is there at the end."""
        yield

    def each(self, function: Callable[[slice], object], count: int) -> None:
        """Call `function` for every run of `count` neurons."""
        run(function, [slice(start, min(start + ROWS, count)) for start in range(0, count, ROWS)], threads=self.threads)


class CudaPlacement(Placement):
    """A CUDA device, snapshots and forecasts in host memory."""

    sizes: ClassVar[Sizes] = CUDA_SIZES

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.threads = CUDA_THREADS

    def pack(self, views: Sequence[Tensor], shape: tuple[int, ...]) -> Tensor:
        if views[0].is_cuda:
            return torch.stack(list(views), dim=1).to(self.device, torch.float32)
        packed = torch.empty(shape, dtype=views[0].dtype, pin_memory=True)  # narrow dtypes travel narrow
        for index, view in enumerate(views):
            packed[:, index] = view
        return packed.to(self.device, non_blocking=True).float()

    def fetch(self, forecasts: Tensor, device: torch.device) -> Tensor:
        if device.type == "cuda":
            return forecasts.to(device)
        host = torch.empty(forecasts.shape, dtype=forecasts.dtype, pin_memory=True).copy_(forecasts, non_blocking=True)
        torch.cuda.current_stream(self.device).synchronize()
        return host

    def hand_over(self, *tensors: Tensor) -> None:
        for tensor in tensors:  # or this thread's next unit could be given their memory before they are read
            tensor.record_stream(torch.cuda.default_stream(self.device))

    @contextmanager
    def unit(self) -> Iterator[None]:
        stream = _STREAMS.on(self.device)
        stream.wait_stream(torch.cuda.default_stream(self.device))  # what the coordinating thread has queued comes first
        with torch.cuda.stream(stream):
            yield
        stream.synchronize()

    def each(self, function: Callable[[slice], object], count: int) -> None:
        function(slice(0, count))


class _Streams(threading.local):
    """Each thread's stream on each device."""

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def on(self, device: torch.device) -> torch.cuda.Stream:
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        return self._streams[device]


_STREAMS: Final = _Streams()


def placement(device: torch.device) -> Placement:
    return CudaPlacement(device) if device.type == "cuda" else Placement(device)
