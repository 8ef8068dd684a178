"""Which weights a server offers, as its options name them: `FILE`, or `NAME=FILE`."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

FORECASTER_NAMES: Final = ("last", "linear", "average", "wnn", "nino")
"""Forecasters every server has, or can have, under these names."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class CheckpointFile:
    """Weights to serve.

    Args:
        path: of the file.
        name: by which jobs ask for it (`forecaster`); None: it takes the place of `nino` or `wnn`, whichever it holds.
    """

    path: Path
    name: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `FILE` or `NAME=FILE`. What stands before the first `=` is a name unless it holds a `/`.

        Raises:
            ValueError: the name is none, or is taken.
        """
        name, given, path = text.partition("=")
        if not given or "/" in name:
            return cls(Path(text))
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name for a checkpoint: 1 to 64 letters, digits, '.', '_' and '-', the first no sign")
        if name in FORECASTER_NAMES:
            raise ValueError(
                f"{name!r} is a forecaster of every server: take another name, or give the file without one, "
                "and it takes the place of nino or wnn, whichever it holds"
            )
        if not path:
            raise ValueError(f"the file of checkpoint {name!r} is missing: give {name}=FILE")
        return cls(Path(path), name)


def parse_all(texts: tuple[str, ...]) -> tuple[CheckpointFile, ...]:
    """All of them.

    Raises:
        ValueError: one cannot be read, or a name comes twice.
    """
    files = tuple(map(CheckpointFile.parse, texts))
    names = [file.name for file in files if file.name is not None]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"there are two checkpoints named {twice!r}: give each a name of its own")
    return files
