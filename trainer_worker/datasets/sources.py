"""Sources of data sets: a Debian package and a plain download. Neither needs root."""

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer_worker.datasets.dataset import DataFile, SourceFailed

TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class DebianPackage:
    """A package of Debian and its children, downloaded and unpacked without being installed.

    Args:
        package: its name.
        folder: where its files lie, relative to the root it would be installed under.
    """

    package: str
    folder: str

    @property
    def label(self) -> str:
        return f"Debian package {self.package}"

    def fetch(self, files: tuple[DataFile, ...], into: Path) -> None:
        """See `Source.fetch`."""
        private = self._private_lists(into / "apt")
        try:
            run_program("apt-get", "download", self.package, folder=into, label="apt-get download")
        except SourceFailed:
            # The machine has no package lists, as in a container image: read them into a folder of our own.
            run_program("apt-get", "update", "-qq", *private, folder=into, label="apt-get update")
            run_program("apt-get", "download", self.package, *private, folder=into, label="apt-get download")
        archive = the_one(into, f"{self.package}_*.deb")
        run_program("dpkg", "-x", str(archive), "unpacked", folder=into, label="dpkg")
        for file in files:
            (into / "unpacked" / self.folder / file.name).replace(into / file.name)

    @staticmethod
    def _private_lists(folder: Path) -> tuple[str, ...]:
        (folder / "lists" / "partial").mkdir(parents=True)
        return ("-o", f"Dir::State::lists={folder / 'lists'}", "-o", f"Dir::Cache={folder / 'cache'}", "-o", "APT::Sandbox::User=")


@dataclass(frozen=True, slots=True)
class Download:
    """Files under one address.

    Args:
        url: of the folder; the files' names are appended.
    """

    url: str

    @property
    def label(self) -> str:
        return f"download from {self.url}"

    def fetch(self, files: tuple[DataFile, ...], into: Path) -> None:
        """See `Source.fetch`."""
        import httpx2

        try:
            with httpx2.Client(follow_redirects=True, timeout=httpx2.Timeout(TIMEOUT_S, connect=10.0)) as client:
                for file in files:
                    with client.stream("GET", f"{self.url}/{file.name}") as response, (into / file.name).open("wb") as target:
                        response.raise_for_status()
                        for piece in response.iter_raw():
                            target.write(piece)
        except httpx2.HTTPError as error:
            raise SourceFailed(str(error) or type(error).__name__) from None


def the_one(folder: Path, pattern: str) -> Path:
    """The file that a program has put into `folder`.

    Raises:
        SourceFailed: there is none, or more than one.
    """
    found = list(folder.glob(pattern))
    if len(found) != 1:
        raise SourceFailed(f"{len(found)} files {pattern} came, not one")
    return found[0]


def run_program(command: str, *arguments: str, folder: Path, label: str) -> None:
    """Run an installed program in `folder`, silently; messages call it `label`.

    Raises:
        SourceFailed: it is missing, fails, or takes too long.
    """
    program = shutil.which(command)
    if program is None:
        raise SourceFailed(f"{command} is not installed")
    call: Sequence[str] = (program, *arguments)
    try:
        # S603: the arguments are this module's own words and paths, and no shell reads them.
        subprocess.run(call, cwd=folder, check=True, capture_output=True, text=True, timeout=TIMEOUT_S)  # noqa: S603
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if line.strip()] or [f"exit {error.returncode}"]
        raise SourceFailed(f"{label}: {lines[-1].strip()}") from None
    except subprocess.TimeoutExpired:
        raise SourceFailed(f"{label} took more than {TIMEOUT_S:.0f} s") from None
