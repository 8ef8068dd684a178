"""Snapshots of one history in a file on disk, each with its checksum.

The file has no name. It ends with this object or this process, whatever ends the process, so after a crash there is nothing that
could be half written, out of date or taken for another job's, and nothing to tidy up.
"""

import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, Final, Self

import torch

PIECE_BYTES: Final = 4 * 1024 * 1024
"""Checksummed in one go while it is in cache, or nearly; written and read in one go."""


@dataclass(frozen=True)
class Saved:
    """Snapshots on disk. Written and read in any thread, by one at a time.

    Args:
        file: holds them one after the other.
        held: step and row of each, in the order of the file.
        checksums: CRC32 of each.
    """

    file: IO[bytes]
    held: tuple[tuple[int, int], ...]
    checksums: tuple[int, ...]

    @classmethod
    def write(cls, folder: Path, rows: torch.Tensor, *, held: Mapping[int, int]) -> Self:
        """Write the rows (context, n) that hold a step.

        Raises:
            OSError: there is no room, or the disk fails. Nothing is left of the file.
        """
        file = open_nameless(folder)
        try:
            if held:
                os.posix_fallocate(file.fileno(), 0, len(held) * _bytes_of(rows[0]).nbytes)  # a full disk says so at once
            checksums = tuple(_write(file, _bytes_of(rows[row])) for row in held.values())
            file.flush()
        except BaseException:
            file.close()
            raise
        return cls(file, tuple(held.items()), checksums)

    def read(self, rows: torch.Tensor) -> list[int]:
        """Fill the rows that were held; the steps of those that are not what was written. What is in these is undefined."""
        lost = []
        for index, ((step, row), checksum) in enumerate(zip(self.held, self.checksums, strict=True)):
            data = _bytes_of(rows[row])
            try:
                self.file.seek(index * data.nbytes)
                whole = _read(self.file, data) == checksum
            except OSError:
                whole = False
            if not whole:
                lost.append(step)
        return lost

    def close(self) -> None:
        """Give back the room on disk."""
        self.file.close()


def open_nameless(folder: Path) -> IO[bytes]:
    """A file in a folder, that nobody else can open.

    Raises:
        OSError: there cannot be one.
    """
    return TemporaryFile(dir=folder)


def _bytes_of(row: torch.Tensor) -> memoryview:
    array: Any = row.view(torch.uint8).numpy()
    return memoryview(array)


def _pieces(data: memoryview) -> Iterator[memoryview]:
    return (data[start : start + PIECE_BYTES] for start in range(0, data.nbytes, PIECE_BYTES))


def _write(file: IO[bytes], data: memoryview) -> int:
    checksum = 0
    for piece in _pieces(data):
        checksum = zlib.crc32(piece, checksum)
        file.write(piece)
    return checksum


def _read(file: IO[bytes], data: memoryview) -> int | None:
    """The checksum of what was read; None if there was too little."""
    checksum = 0
    for piece in _pieces(data):
        if file.readinto(piece) != piece.nbytes:  # type: ignore[attr-defined]  # typeshed's IO lacks it
            return None
        checksum = zlib.crc32(piece, checksum)
    return checksum
