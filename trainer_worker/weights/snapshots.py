"""Host copies of the context's snapshots, in memory that is allocated once."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor

from trainer_worker.weights.flat import FlatParameters

TORCH_DTYPES: Final = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """The flat parameter vector at one step, on the host.

    Args:
        step: optimizer steps taken.
        values: (n,) in the job's dtype.
        copied: set on CUDA, where the copy runs beside the training.
    """

    step: int
    values: Tensor
    copied: torch.Event | None = None

    def wait(self) -> Tensor:
        """The values, once they are all there."""
        if self.copied is not None:
            self.copied.synchronize()
        return self.values


class SnapshotBuffers:
    """Takes snapshots into preallocated rows.

    On a CPU training pays for one copy. On CUDA it pays for a copy within the device, into a staging vector; a side stream
    brings that to pinned host memory while training goes on.

    Args:
        parameters: what to copy.
        dtype: of the snapshots.
        rows: how many there is room for: one more than a context, so that one may still be on its way when the next begins.
    """

    def __init__(self, parameters: FlatParameters, *, dtype: torch.dtype, rows: int) -> None:
        self._parameters = parameters
        cuda = parameters.device.type == "cuda" and not parameters.sharded  # no device holds a vector of a sharded model
        # touched here, so that the first snapshots do not pay for page faults
        self._rows = torch.empty(rows, parameters.size, dtype=dtype, device="cpu", pin_memory=cuda).zero_()
        self._staging = torch.empty(parameters.size, dtype=dtype, device=parameters.device) if cuda else None
        self._stream = torch.Stream(parameters.device) if cuda else None
        self._copied: torch.Event | None = None

    def row_of(self, snapshot: Snapshot) -> int:
        """Which row a snapshot lies in."""
        return int(snapshot.values.storage_offset() // max(1, self._rows.shape[1]))

    def take(self, step: int, *, busy: set[int], means: Mapping[Tensor, Tensor] = MappingProxyType({})) -> Snapshot:
        """Copy the parameters, or the `means` of some, into a row that is not `busy`."""
        values = self._free(busy)
        if self._staging is None:
            self._parameters.copy_to(values, means=means)
            return Snapshot(step, values)
        return Snapshot(step, values, self._copy_beside(values, means))

    def put(self, step: int, values: Tensor, *, busy: set[int]) -> Snapshot:
        """Copy a snapshot that was saved into a row that is not `busy`."""
        return Snapshot(step, self._free(busy).copy_(values))

    def _free(self, busy: set[int]) -> Tensor:
        free: Tensor = next(row for index, row in enumerate(self._rows) if index not in busy)
        return free

    def _copy_beside(self, values: Tensor, means: Mapping[Tensor, Tensor]) -> torch.Event:
        assert self._staging is not None
        assert self._stream is not None
        main = torch.accelerator.current_stream(self._staging.device)
        if self._copied is not None:
            main.wait_event(self._copied)  # the last snapshot has left the staging vector
        self._parameters.copy_to(self._staging, means=means)
        self._stream.wait_stream(main)
        with self._stream:
            values.copy_(self._staging, non_blocking=True)
            self._copied = torch.Event(self._staging.device)
            self._copied.record(self._stream)
        return self._copied
