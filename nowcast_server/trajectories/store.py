"""Trajectories on disk: one file a run, appended snapshot by snapshot, readable at any moment.

    8 bytes    b"NOWTRAJ1"
    8 bytes    length of the header in bytes, little-endian
    header     JSON, padded with spaces so that what follows starts at a multiple of 64 bytes
    4 n bytes  base: the first snapshot, little-endian float32
    records    one for each snapshot, 24 + 2 n bytes:
               step uint64, loss float32, segment uint32, crc32 uint32 of the deltas, zero uint32, deltas (n,) float16

A snapshot is base + deltas; differences from the base keep more digits in float16 than the weights would. A jump starts a new
segment: training did not go from one segment to the next. A record that is cut off or fails its checksum, as after
a crash, ends the trajectory; a writer that opens the file again continues from there.
"""

import json
import logging
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, Final, Self

import numpy as np
import numpy.typing as npt

logger = logging.getLogger(__name__)

MAGIC: Final = b"NOWTRAJ1"
SUFFIX: Final = ".trajectory"
ALIGNMENT: Final = 64
UNEVEN: Final = 1.6  # the distance between two snapshots grows with a run of unknown length, but not so fast: one is missing
IDLE_BYTES: Final = 4096  # of memory that an open file holds; a snapshot is written at once, and Python 3.14 would take 128 KiB
MAX_PARAMETERS: Final = (2**31 - 1 - 24) // 2  # NumPy counts the bytes of a record in a C int, and may go on below 0 beyond it

Floats = npt.NDArray[np.float32]


class BadTrajectory(Exception):
    """A file that is no trajectory, or a snapshot that does not fit it."""


def _record(size: int) -> np.dtype[Any]:
    if not 0 <= size <= MAX_PARAMETERS:
        raise BadTrajectory(f"a trajectory is of at most {MAX_PARAMETERS} parameters, not {size}")
    fields: list[Any] = [("step", "<u8"), ("loss", "<f4"), ("segment", "<u4"), ("crc", "<u4"), ("zero", "<u4")]
    return np.dtype([*fields, ("deltas", "<f2", (size,))])


@dataclass(frozen=True)
class Trajectory:
    """One recorded run, mapped into memory."""

    path: Path  # the file
    header: dict[str, Any]  # what was said about the run; see `TrajectoryWriter`
    base: Floats  # (n,) float32
    records: npt.NDArray[Any]  # (snapshots,) of step, loss, segment and deltas

    @classmethod
    def open(cls, path: Path) -> Self:
        """Map a file into memory, or raise BadTrajectory."""
        header, start = _read_header(path)
        record = _record(size := header["parameters"])
        room = path.stat().st_size - start - 4 * size
        if room < 0:
            raise BadTrajectory(f"{path} ends within its base")
        base, count = np.fromfile(path, dtype="<f4", count=size, offset=start), room // record.itemsize
        if count == 0:
            return cls(path, header, base, np.empty(0, dtype=record))
        records = np.memmap(path, dtype=record, mode="r", offset=start + 4 * size, shape=(count,))
        # appending can only damage the end, so the last sound one vouches for those before
        while count and zlib.crc32(records["deltas"][count - 1].tobytes()) != records["crc"][count - 1]:
            count -= 1
        return cls(path, header, base, records[:count])

    @cached_property
    def steps(self) -> npt.NDArray[np.int64]:
        """(snapshots,) the training step of each."""
        return np.asarray(self.records["step"], dtype=np.int64)

    def pieces(self) -> "list[Trajectory]":
        """Stretches without a jump and without a missing snapshot: in each, steps are equally far apart, or nearly."""
        gaps, segments = np.diff(self.steps), np.diff(self.records["segment"].astype(np.int64))
        starts, usual = [0], 0
        for index, gap in enumerate(gaps.tolist(), start=1):
            if segments[index - 1] or (usual and not 1 / UNEVEN < gap / usual < UNEVEN):
                starts.append(index)
                usual = 0
            else:
                usual = gap
        return [replace(self, records=self.records[start:end]) for start, end in pairwise([*starts, len(self.steps)])]

    def first(self, count: int) -> Self:
        """The run as it was when it had `count` snapshots."""
        return replace(self, records=self.records[:count])

    def states(self, index: npt.NDArray[np.int64] | slice) -> Floats:
        """Snapshots by position: (len(index), n) float32."""
        deltas: Floats = self.records["deltas"][index].astype(np.float32)
        return deltas + self.base


class TrajectoryWriter:
    """Appends snapshots (n,) float32 to a file, whose folder is made, or goes on with one that is there. Of a new file `first` is
    the base, and `header` is JSON-able: `task`, `wiring` or `design` (by `to_dict`) for `metatrain.fit`, and whatever else is
    known. BadTrajectory if the file there holds another network's run, or a snapshot is too large for any.
    """

    def __init__(self, path: Path, first: Floats, *, header: dict[str, Any]) -> None:
        self.path, self._size, self._record = path, len(first), _record(len(first))
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            _create(path, first, header)
        kept = Trajectory.open(path)
        if len(kept.base) != self._size:
            raise BadTrajectory(f"{path} holds snapshots of {len(kept.base)} parameters, not {self._size}")
        self.last_step, self.last_segment = (int(kept.records[name][-1]) if len(kept.steps) else -1 for name in ("step", "segment"))
        _, self._start = _read_header(path)
        self._file: BinaryIO = path.open("r+b", buffering=IDLE_BYTES)
        self._file.truncate(self._start + 4 * self._size + len(kept.steps) * self._record.itemsize)
        self._file.seek(0, os.SEEK_END)

    def append(self, step: int, state: Floats, *, loss: float = float("nan"), segment: int = 0) -> None:
        """Add the snapshot `state` (n,). BadTrajectory if its step is not later than all, or a weight is beyond float16's reach."""
        if step <= self.last_step:
            raise BadTrajectory(f"step {step} is not after step {self.last_step}")
        row = np.zeros(1, dtype=self._record)
        base = np.memmap(self.path, dtype="<f4", mode="r", offset=self._start, shape=(self._size,))
        with np.errstate(over="ignore"):
            np.subtract(state, base, out=row["deltas"][0], casting="same_kind")
        if not np.isfinite(row["deltas"]).all():
            raise BadTrajectory(f"the snapshot of step {step} is not finite in float16")
        row["step"], row["loss"], row["segment"] = step, loss, segment
        row["crc"] = zlib.crc32(row["deltas"].data)
        self._file.write(row.data)
        self._file.flush()  # others may read it now
        self.last_step, self.last_segment = step, segment

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def trajectories(folder: Path) -> Iterator[Trajectory]:
    """All trajectories below `folder` by path, but for drafts, whose folders are hidden; a damaged one is logged and left out."""
    for path in sorted(folder.rglob(f"*{SUFFIX}")):
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        try:
            yield Trajectory.open(path)
        except BadTrajectory as error:
            logger.warning("left out: %s", error)


def _create(path: Path, first: Floats, header: dict[str, Any]) -> None:
    text = json.dumps({**header, "format": 1, "parameters": len(first)}, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 16) % ALIGNMENT)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with draft.open("wb") as file:
        file.write(MAGIC + len(text).to_bytes(8, "little") + text)
        file.write(np.ascontiguousarray(first, dtype="<f4").data)
    draft.replace(path)


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    with path.open("rb") as file:
        if file.read(8) != MAGIC:
            raise BadTrajectory(f"{path} is no trajectory")
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(min(length, 2**30)))
        except (ValueError, RecursionError) as error:
            raise BadTrajectory(f"{path}: its header is not JSON") from error
    if not isinstance(header, dict) or header.get("format") != 1 or not isinstance(header.get("parameters"), int):
        raise BadTrajectory(f"{path}: this version reads format 1 alone")
    return header, 16 + length
