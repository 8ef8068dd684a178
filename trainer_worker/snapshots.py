"""Snapshots out: host copies of the weights, in memory that is allocated once."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from protos.errors import NowcastError
from trainer_worker.weights.flat import FlatParameters

SPARE_ROWS: Final = 3  # beyond a context: for the one being taken, one that a forecast still reads, one that is being sent


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """The flat parameter vector at one step, on the host."""

    step: int  # optimizer steps taken
    values: Tensor  # (n,) in the job's dtype
    copied: torch.Event | None = None  # set on CUDA, where the copy runs beside the training

    def wait(self) -> Tensor:
        """The values, once they are all there."""
        if self.copied is not None:
            self.copied.synchronize()
        return self.values


class NoRow(NowcastError):
    """All rows are in use: earlier snapshots are still being sent or read."""

    code = "behind"


class SnapshotBuffers:
    """Takes snapshots into preallocated rows. On a CPU training pays for one copy; on CUDA for one within the device, to where a
    side stream takes it from to pinned host memory while training goes on.
    """

    def __init__(self, flat: FlatParameters, *, dtype: torch.dtype, rows: int) -> None:
        self._flat = flat
        cuda = flat.device.type == "cuda" and not flat.sharded  # no device holds a vector of a sharded model
        # touched here, so that the first snapshots do not pay for page faults
        self._rows = torch.empty(rows, flat.size, dtype=dtype, device="cpu", pin_memory=cuda).zero_()
        self._staging = torch.empty(flat.size, dtype=dtype, device=flat.device) if cuda else None
        self._stream = torch.Stream(flat.device) if cuda else None
        self._copied: torch.Event | None = None
        self.copied_s = 0.0

    def take(self, step: int, *, in_use: Sequence[Snapshot]) -> Snapshot:
        """Copy the parameters into a row that none of the snapshots in use lies in. Raises NoRow if there is none."""
        start = time.perf_counter()
        busy = {snapshot.values.data_ptr() for snapshot in in_use}
        values = next((row for row in self._rows.unbind() if row.data_ptr() not in busy), None)
        if self._staging is None:
            self._flat.copy_to(values)  # even without a row: other ranks wait for this one's part of a split model
        if values is None:
            raise NoRow("all rows for snapshots are in use")
        copied = self._copy_beside(values) if self._staging is not None else None
        self.copied_s += time.perf_counter() - start
        return Snapshot(step, values, copied)

    def _copy_beside(self, values: Tensor) -> torch.Event:
        assert self._staging is not None
        assert self._stream is not None
        main = torch.accelerator.current_stream(self._staging.device)
        if self._copied is not None:
            main.wait_event(self._copied)  # the last snapshot has left the staging vector
        self._flat.copy_to(self._staging)
        self._stream.wait_stream(main)
        with self._stream:
            values.copy_(self._staging, non_blocking=True)
            self._copied = torch.Event(self._staging.device)
            self._copied.record(self._stream)
        return self._copied
