"""What the checks share: a device, a checkpoint, and how to measure on it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

import torch
from torch import Tensor

from nowcast_server.nino.checkpoint import Checkpoint
from nowcast_server.nino.engine import StreamingEngine
from nowcast_server.nino.precision import Precision
from nowcast_server.selftest.networks import features
from protos.wiring import Wiring

Figures = dict[str, Any]
CPU: Final = torch.device("cpu")


class Failed(Exception):
    """A check did not hold; says what was found and what should have been."""


@dataclass(frozen=True)
class Setup:
    """What is tested.

    Args:
        device: where.
        checkpoint: a graph network's.
    """

    device: torch.device
    checkpoint: Checkpoint

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def engine(self, precision: Precision = "float32", *, device: torch.device | None = None) -> StreamingEngine:
        return StreamingEngine(self.checkpoint, device=device or self.device, precision=precision)

    def features(self, wiring: Wiring, *, device: torch.device | None = None) -> Tensor:
        return features(wiring, self.checkpoint.options.laplacian).to(device or self.device)

    def wait(self) -> None:
        """Until the device has done all it was given."""
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], object], *, rounds: int) -> float:
        """Median time of some work on the device, after a first round that does not count."""
        times = []
        for _ in range(rounds + 1):
            start = time.perf_counter()
            work()
            self.wait()
            times.append(time.perf_counter() - start)
        return median(times[1:])


@contextmanager
def multiplying(precision: Precision) -> Iterator[None]:
    """TF32 is a switch of the process."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def error(ours: Tensor, theirs: Tensor, last: Tensor) -> float:
    """Of the forecast change, the worst over horizons."""
    changes = theirs - last
    return max(float((one - other).norm() / change.norm()) for one, other, change in zip(ours, theirs, changes, strict=True))
