"""A data set is a list of files known by the checksum of their content, and the sources that may have them."""

import gzip
import hashlib
import logging
import os
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from trainer_worker.errors import CommandFailed

logger = logging.getLogger(__name__)


class DataMissing(CommandFailed):
    """No source has the data set; the message lists what was tried and why each failed."""


class SourceFailed(Exception):
    """One source could not give the files."""


@dataclass(frozen=True, slots=True)
class DataFile:
    """One file of a data set.

    Args:
        name: in the data set's folder.
        sha256: of the content; of the unpacked content if the name ends in `.gz`, because archives of the same data differ.
    """

    name: str
    sha256: str

    def read(self, folder: Path) -> bytes:
        """The content, unpacked and checked.

        Raises:
            SourceFailed: it is missing, damaged, or something else.
        """
        path = folder / self.name
        try:
            content = path.read_bytes()
            if path.suffix == ".gz":
                content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise SourceFailed(f"{path}: {getattr(error, 'strerror', None) or error}") from None
        found = hashlib.sha256(content).hexdigest()
        if found != self.sha256:
            raise SourceFailed(f"{path}: its content has the sha256 {found[:16]}…, not {self.sha256[:16]}…")
        return content


class Source(Protocol):
    """Somewhere the files can be had from."""

    @property
    def label(self) -> str:
        """Names the source in messages."""

    def fetch(self, files: tuple[DataFile, ...], into: Path) -> None:
        """Put the files into the folder `into`; called only if no copy is on disk.

        Raises:
            SourceFailed: with the reason.
        """


@dataclass(frozen=True, slots=True)
class Dataset:
    """Where a data set comes from.

    Args:
        name: as in commands and folder names.
        licence: of the data.
        files: all that make up the set.
        sources: tried in this order when no copy is on disk.
        installed: folders in which a system package keeps its copy.
    """

    name: str
    licence: str
    files: tuple[DataFile, ...]
    sources: tuple[Source, ...]
    installed: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Held:
    """A data set in memory, every byte checked, and the folder and source it came from."""

    folder: Path
    source: str
    contents: dict[str, bytes]


def store() -> Path:
    """The folder data sets are kept in: `$NOWCAST_DATA`, else the user's cache."""
    if given := os.environ.get("NOWCAST_DATA"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nowcast" / "data"


def read(dataset: Dataset, *, path: str | Path | None = None) -> Held:
    """Read a data set from the first place that has it whole.

    The order: `path` if given (then nothing else is tried), copies on disk (`$NOWCAST_DATA/NAME` or the cache, `data/NAME`
    in the working directory, an installed system package), then each of the set's sources, whose files are kept in `store()`.

    Raises:
        DataMissing: no place has it; the message lists them all.
    """
    if path is not None:
        return _read_given(dataset, Path(path))
    tried: list[str] = []
    for folder in (store() / dataset.name, Path("data") / dataset.name, *dataset.installed):
        try:
            return _read_folder(dataset, folder, source="disk")
        except SourceFailed as failure:
            tried.append(f"on disk: {failure}")
    for source in dataset.sources:
        logger.info("getting %s from %s", dataset.name, source.label)
        try:
            return _fetch(dataset, source)
        except SourceFailed as failure:
            tried.append(f"{source.label}: {failure}")
    raise DataMissing(
        f"the data set {dataset.name} was not found. Tried:\n"
        + "\n".join(f"  - {line}" for line in tried)
        + f"\nPut the files {', '.join(file.name for file in dataset.files)} into {store() / dataset.name} or give their folder."
    )


def _read_given(dataset: Dataset, folder: Path) -> Held:
    try:
        return _read_folder(dataset, folder, source="given path")
    except SourceFailed as failure:
        raise DataMissing(f"the folder given for {dataset.name} does not hold it: {failure}") from None


def _read_folder(dataset: Dataset, folder: Path, *, source: str) -> Held:
    return Held(folder, source, {file.name: file.read(folder) for file in dataset.files})


def _fetch(dataset: Dataset, source: Source) -> Held:
    """Fetch beside the store and check there, then move file by file: a reader sees whole files or none."""
    home = store() / dataset.name
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=home.parent) as scratch:
            _ask(source, dataset.files, into=Path(scratch))
            held = _read_folder(dataset, Path(scratch), source=source.label)
            for file in dataset.files:
                (Path(scratch) / file.name).replace(home / file.name)
    except OSError as error:
        raise SourceFailed(f"cannot keep it in {home}: {error.strerror or error}") from None
    return Held(home, source.label, held.contents)


def _ask(source: Source, files: tuple[DataFile, ...], *, into: Path) -> None:
    """What a source stumbles over is no fault of the store's."""
    try:
        source.fetch(files, into)
    except OSError as error:
        raise SourceFailed(str(error)) from error
