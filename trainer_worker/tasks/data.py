"""Data sets: lists of files known by their checksums, and the sources that may have them. None needs root. Fashion-MNIST is one."""

import gzip
import hashlib
import logging
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from trainer_worker.errors import CommandFailed

TIMEOUT_S: Final = 300.0

logger = logging.getLogger(__name__)


class DataMissing(CommandFailed):
    """No source has the data set; the message lists what was tried and why each failed."""


class SourceFailed(Exception):
    """A place does not have what it should; the message says why."""


@dataclass(frozen=True, slots=True)
class DataFile:
    name: str  # in the data set's folder
    sha256: str  # of the content; of the unpacked content if the name ends in `.gz`, because archives of the same data differ

    def read(self, folder: Path) -> bytes:
        """The content, unpacked and checked. Raises `SourceFailed`: it is something else; and what reading and unpacking raise."""
        path = folder / self.name
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        if (found := hashlib.sha256(content).hexdigest()) != self.sha256:
            raise SourceFailed(f"{path}: its content has the sha256 {found[:16]}…, not {self.sha256[:16]}…")
        return content


class Source(Protocol):
    """Somewhere the files can be had from."""

    def fetch(self, files: tuple[DataFile, ...], into: Path) -> None:
        """Put the files into the folder `into`; whatever it raises, the next source is tried."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """Where a data set comes from."""

    name: str  # as in commands and folder names
    licence: str  # of the data
    files: tuple[DataFile, ...]  # all that make up the set
    sources: tuple[Source, ...]  # tried in this order when no copy is on disk
    installed: tuple[Path, ...] = ()  # folders in which a system package keeps its copy


def read(dataset: Dataset, *, path: str | Path | None = None) -> dict[str, bytes]:
    """The files of a data set, every byte checked, by name, from the first place that has it whole.

    The order: `path` if given (then nothing else is tried), copies on disk (`$NOWCAST_DATA/NAME` or the user's cache, `data/NAME`
    in the working directory, an installed system package), then each of the set's sources, whose files are kept.
    Raises DataMissing: no place has it; the message lists them all.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nowcast" / "data"
    home = Path(os.environ.get("NOWCAST_DATA") or cache) / dataset.name
    places: tuple[Path | Source, ...] = (home, Path("data") / dataset.name, *dataset.installed, *dataset.sources)
    tried = ""
    for place in places if path is None else (Path(path),):
        try:
            return _read_folder(dataset, place) if isinstance(place, Path) else _fetch(dataset, place, home)
        except Exception as failure:  # noqa: BLE001 -- whatever is wrong with a place, the next one may be in order
            tried += f"  - {place}: {str(failure) or type(failure).__name__}\n"
    raise DataMissing(
        f"the data set {dataset.name} was not found. Tried:\n{tried}"
        f"Put the files {', '.join(file.name for file in dataset.files)} into {home} or give their folder."
    )


def _read_folder(dataset: Dataset, folder: Path) -> dict[str, bytes]:
    return {file.name: file.read(folder) for file in dataset.files}


def _fetch(dataset: Dataset, source: Source, home: Path) -> dict[str, bytes]:
    """Fetch beside the store and check there, then move file by file: a reader sees whole files or none."""
    logger.info("getting %s from %s", dataset.name, source)
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=home.parent) as scratch:
        source.fetch(dataset.files, Path(scratch))
        contents = _read_folder(dataset, Path(scratch))
        for file in dataset.files:
            (Path(scratch) / file.name).replace(home / file.name)
    return contents


@dataclass(frozen=True, slots=True)
class DebianPackage:
    """A package of Debian and its children, unpacked without being installed; `folder` is where it would put the files."""

    package: str
    folder: str

    def fetch(self, files: tuple[DataFile, ...], into: Path) -> None:
        """Where the machine has no package lists, as in a container image, they are read into `into`."""
        (into / "lists" / "partial").mkdir(parents=True)
        private = ("-o", f"Dir::State::lists={into / 'lists'}", "-o", f"Dir::Cache={into / 'cache'}", "-o", "APT::Sandbox::User=")
        try:
            run_program("apt-get", "download", self.package, folder=into)
        except SourceFailed:
            run_program("apt-get", "update", "-qq", *private, folder=into)
            run_program("apt-get", "download", self.package, *private, folder=into)
        (archive,) = into.glob(f"{self.package}_*.deb")
        run_program("dpkg", "-x", str(archive), "unpacked", folder=into)
        for file in files:
            (into / "unpacked" / self.folder / file.name).replace(into / file.name)


@dataclass(frozen=True, slots=True)
class Download:
    """Files in the folder at an address."""

    url: str

    def fetch(self, files: tuple[DataFile, ...], into: Path) -> None:
        """Get the files one after the other."""
        import httpx2

        with httpx2.Client(follow_redirects=True, timeout=httpx2.Timeout(TIMEOUT_S, connect=10.0)) as client:
            for file in files:
                with client.stream("GET", f"{self.url}/{file.name}") as response:
                    # raw: archives stay packed, whatever the headers say
                    (into / file.name).write_bytes(b"".join(response.raise_for_status().iter_raw()))


def run_program(command: str, *arguments: str, folder: Path) -> None:
    """Run an installed program in `folder`, silently. Raises `SourceFailed`: it fails; OSError or TimeoutExpired: it cannot run."""
    # S603: the arguments are this module's own words and paths, and no shell reads them.
    done = subprocess.run((command, *arguments), cwd=folder, check=False, capture_output=True, text=True, timeout=TIMEOUT_S)  # noqa: S603
    if done.returncode:
        raise SourceFailed(f"{command} ended with exit code {done.returncode}: {' '.join(done.stderr.split())[-300:]}")


FASHION_MNIST: Final = Dataset(
    name="fashion-mnist",
    licence="MIT",
    files=(
        # Of the unpacked content: Debian packed the same bytes anew, so its archives differ from the authors' (same
        # deflate stream, other gzip header; with the authors' header back, their published MD5 sums come out).
        DataFile("train-images-idx3-ubyte.gz", "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"),
        DataFile("train-labels-idx1-ubyte.gz", "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"),
        DataFile("t10k-images-idx3-ubyte.gz", "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"),
        DataFile("t10k-labels-idx1-ubyte.gz", "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"),
    ),
    sources=(
        DebianPackage("dataset-fashion-mnist", "usr/share/datasets/fashion-mnist"),
        Download("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"),
    ),
    installed=(Path("/usr/share/datasets/fashion-mnist"),),
)


class Pictures(NamedTuple):
    """Images (examples, height, width) and their classes (examples,), both uint8."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]


def fashion_mnist(path: str | Path | None = None) -> tuple[Pictures, Pictures]:
    """60,000 training and 10,000 test pictures of clothes, 28x28, in ten classes (Xiao, Rasul, Vollgraf 2017, arXiv 1708.07747),
    from `path`, or as `read` finds them. Raises DataMissing: no source has them.
    """
    bytes_of = {name: np.frombuffer(content, dtype=np.uint8) for name, content in read(FASHION_MNIST, path=path).items()}
    train, test = (  # the headers of IDX files: four bytes of type, four for each dimension
        Pictures(bytes_of[f"{part}-images-idx3-ubyte.gz"][16:].reshape(-1, 28, 28), bytes_of[f"{part}-labels-idx1-ubyte.gz"][8:])
        for part in ("train", "t10k")
    )
    return train, test
