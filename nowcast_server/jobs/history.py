"""The last snapshots of one job, in fixed memory: an upload streams into a free row, checked, and becomes visible when complete."""

import asyncio
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from typing import Final, TypeVar

import torch
from pydantic import BaseModel, ValidationError

from protos.errors import BadFrame, BadValue, HistoryMissing, OutOfMemoryBudget, SnapshotConflict
from protos.frames import DTYPE_BYTES, FrameReader, Header
from protos.messages import JobSpec, NowcastRequest, Progress

Model = TypeVar("Model", bound=BaseModel)

PIECE: Final = 32_768  # values looked at in one go: they stay in cache, and torch handles so few on the calling thread
_SERIALS: Final = count(1)
SPARE_ROWS: Final = 1  # rows beyond the context: one to receive into while a forecast reads all the others


def history_bytes(size: int, *, context: int, dtype: str) -> int:
    """Memory of a history of snapshots of `size` values."""
    return (context + SPARE_ROWS) * size * DTYPE_BYTES[dtype]


@dataclass(frozen=True)
class Context:
    """The snapshots of one forecast, oldest first, held in place until `History.release`."""

    step: int  # of the last of them
    serials: tuple[int, ...]  # a number of each that no other snapshot of this process has
    rows: tuple[int, ...]  # where they lie in the history
    states: tuple[torch.Tensor, ...]  # (n,) each, in the job's dtype


class History:
    """The newest `context` snapshots by step, received in any order. Used on the event loop only. A row is in use while a snapshot
    in it is held, an upload fills it, or a forecast reads it: so no forecast sees a row change, and nobody half a snapshot.
    OutOfMemoryBudget if the machine has not the memory the budget promised.
    """

    def __init__(self, size: int, *, context: int, dtype: str) -> None:
        self.size_bytes = history_bytes(size, context=context, dtype=dtype)
        self._shape = (context + SPARE_ROWS, size)
        self._dtype = getattr(torch, dtype)
        self._context = context
        self._held: dict[int, int] = {}  # step -> row
        self._serials = [0] * self._shape[0]
        self._uses = [0] * self._shape[0]
        self._free = asyncio.Semaphore(self._shape[0])
        self._rows: torch.Tensor | None = None
        self.allocate()

    def allocate(self) -> None:
        """Have memory, after `evict` again; raises OutOfMemoryBudget if there is none."""
        try:
            # of its own, which the system has back at once when they are let go, where malloc would keep some
            pages = mmap(-1, self.size_bytes, flags=MAP_PRIVATE | MAP_ANONYMOUS)
        except OSError as error:
            raise OutOfMemoryBudget(f"no memory for a history of {self._shape} {self._dtype} values") from error
        self._rows = torch.frombuffer(pages, dtype=self._dtype).view(self._shape)

    def evict(self) -> None:
        """Forget all snapshots and let go of the memory; nothing uses a row."""
        for step in self.steps:
            self.drop(self._held.pop(step))
        self._rows = None

    @property
    def evicted(self) -> bool:
        return self._rows is None

    @property
    def steps(self) -> list[int]:
        """Steps held, oldest first."""
        return sorted(self._held)

    @property
    def in_use(self) -> bool:
        """Does an upload or a forecast use a row now?"""
        return sum(self._uses) > len(self._held)

    def check_step(self, step: int) -> None:
        """Raise SnapshotConflict if this step is older than all of a full history."""
        if len(self._held) == self._context and step < min(self._held):
            detail = f"step {step} is older than the {self._context} snapshots held; delete the job to start again from there"
            raise SnapshotConflict(detail, field="step", steps=self.steps)

    async def take(self) -> int:
        """A row to receive into, once there is a free one; give it back by `drop`."""
        await self._free.acquire()
        row = self._uses.index(0)
        self._uses[row] = 1
        return row

    def row(self, row: int) -> torch.Tensor:
        """The values of a row, (n,); not while the history is `evicted`."""
        assert self._rows is not None
        return self._rows[row]

    def drop(self, row: int) -> None:
        """End one use of a row."""
        self._uses[row] -= 1
        if not self._uses[row]:
            self._free.release()

    def hold(self, step: int) -> int:
        """Use the row of a held step; give it back by `drop`."""
        row = self._held[step]
        self._uses[row] += 1
        return row

    async def store(self, step: int, row: int) -> bool:
        """Make a received row visible; False if the same snapshot was there, SnapshotConflict if another was or it is too old."""
        if step not in self._held:
            self.commit(step, row)
            return True
        held = self.hold(step)
        try:
            ours, theirs = (self.row(each).view(torch.uint8) for each in (row, held))
            if not await asyncio.to_thread(torch.equal, ours, theirs):
                raise SnapshotConflict(f"step {step} already has other values", field="step", steps=self.steps)
        finally:
            self.drop(held)
        return False

    def commit(self, step: int, row: int) -> None:
        """Make a received row the snapshot of `step`, and forget the oldest beyond the context. Raises as `check_step` does."""
        self.check_step(step)
        self._held[step] = row
        self._serials[row] = next(_SERIALS)
        self._uses[row] += 1
        if len(self._held) > self._context:
            self.drop(self._held.pop(min(self._held)))

    def read(self, steps: Sequence[int]) -> Context:
        """Hold the snapshots of these steps in place for a forecast; raises HistoryMissing, which says what is not here."""
        missing = [step for step in steps if step not in self._held]
        if missing:
            detail = f"the history lacks the steps {missing}: send them and ask again"
            raise HistoryMissing(detail, missing=missing, steps=self.steps)
        rows = tuple(self.hold(step) for step in steps)
        return Context(steps[-1], tuple(self._serials[row] for row in rows), rows, tuple(map(self.row, rows)))

    def release(self, context: Context) -> None:
        for row in context.rows:
            self.drop(row)


class Arrival:
    """Reads the frames of one snapshot of a job into the row `values` (n,), checked on the event loop piece by piece while it is
    in cache: about 0.2 ms for the 256 kB that a socket delivers at once. A thread would cost more than it saves.
    """

    def __init__(self, spec: JobSpec, *, step: int, values: torch.Tensor) -> None:
        self._spec = spec
        self._values = values
        self._checked = 0  # values known to be finite
        # not a method of this object: reader and arrival would hold each other, and a row of the history, until some collection
        self._reader = FrameReader(partial(_allocate, spec, step, values))

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the body. Raise BadFrame, UnsupportedMedia or BadValue, naming what is wrong."""
        self._reader.feed(data)
        received = self._reader.received_bytes // self._values.element_size()
        if received - self._checked >= PIECE:
            self._check_finite(received)

    def close(self) -> tuple[Progress | None, NowcastRequest | None]:
        """The body is over; what came with the snapshot. Raises BadFrame if it is too early."""
        header = self._reader.close()
        self._check_finite(self._values.numel())
        return _with_it(header)

    def _check_finite(self, received: int) -> None:
        wrong = first_not_finite(self._values[self._checked : received])
        if wrong is not None:
            wiring, position = self._spec.wiring, self._checked + wrong
            parameter = wiring.parameters[bisect_right(wiring.offsets, position) - 1]
            value = self._values[position].item()
            raise BadValue(f"value {position} of the snapshot, in {parameter.name!r}, is {value}", field=parameter.name)
        self._checked = received


def _allocate(spec: JobSpec, step: int, values: torch.Tensor, header: Header) -> memoryview:
    expected = {"kind": "snapshot", "dtype": spec.dtype, "shape": (spec.wiring.size,), "step": step}
    for name, wanted in expected.items():
        if (given := getattr(header, name)) != wanted:
            raise BadFrame(f"the header's {name} is {given!r}; this snapshot of this job needs {wanted!r}", field=f"header.{name}")
    _with_it(header)  # so that a snapshot is refused before its data come
    return values.view(torch.uint8).numpy().data


def _with_it(header: Header) -> tuple[Progress | None, NowcastRequest | None]:
    progress, request = _read(Progress, header.progress, "progress"), _read(NowcastRequest, header.request, "request")
    if request is not None and request.step != header.step:
        raise BadFrame("the context of the request must end with this snapshot", field="header.request.context")
    return progress, request


def _read(model: type[Model], values: object, name: str) -> Model | None:
    try:
        return None if values is None else model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, (f"header.{name}", *first["loc"])))
        raise BadFrame(f"the {name} in the header is wrong: {first['msg']}", field=field) from None


def first_not_finite(values: torch.Tensor) -> int | None:
    """Position of the first NaN or infinity in `values` (n,), of any float dtype; None if there is none."""
    # a sum is finite only if every term is, and makes nothing; finite values whose sum overflows are looked at again
    size = PIECE if values.device.type == "cpu" else max(1, values.numel())  # a device answers once
    for start in range(0, values.numel(), size):
        piece = values[start : start + size]
        if not math.isfinite(piece.sum(dtype=torch.float32).item()):
            wrong = piece.isfinite().logical_not_().nonzero()
            if wrong.numel():
                return start + int(wrong[0])
    return None
