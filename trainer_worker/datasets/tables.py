"""The small tables that scikit-learn carries: breast cancer, wine, diabetes, and 8x8 digits (UCI and others; BSD-3 package)."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trainer_worker.datasets.dataset import DataFile, Dataset, read
from trainer_worker.datasets.wheel import PythonWheel

TABLES = Dataset(
    name="tables",
    licence="BSD-3-Clause",
    files=(
        DataFile("breast_cancer.csv", "fed3eb72d0575ef6192293f5093c6e801b1476b577d0386bf4455504522172ed"),
        DataFile("wine_data.csv", "10e8a802908b34f86e5da8ce962f3c806694bc98450a18f61851af59f324bede"),
        DataFile("diabetes_data_raw.csv.gz", "86badf50b4f9436ddd1e497dc0ae1b93166f8120221ee7dca4634fe849f3be7c"),
        DataFile("diabetes_target.csv.gz", "244713a551f62a291a354212d8a048adec6cb1244b2bc44e66a0698f5006d26d"),
        DataFile("digits.csv.gz", "6ebb3d2fee246a4e99363262ddf8a00a3c41bee6014c373ed9d9216ba7f651b8"),
    ),
    sources=(
        PythonWheel(
            "scikit-learn==1.9.1",
            {
                name: f"sklearn/datasets/data/{name}"
                for name in (
                    "breast_cancer.csv",
                    "wine_data.csv",
                    "diabetes_data_raw.csv.gz",
                    "diabetes_target.csv.gz",
                    "digits.csv.gz",
                )
            },
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class Table:
    """Examples of numbers.

    Args:
        features: (examples, columns) float32, each column standardised.
        targets: (examples,) int64 classes, or (examples,) float32 standardised values.
    """

    features: npt.NDArray[np.float32]
    targets: npt.NDArray[np.int64] | npt.NDArray[np.float32]


def tables(path: str | Path | None = None) -> dict[str, Table]:
    """The tables by name; `diabetes` is a regression, the others are classifications.

    Raises:
        DataMissing: no source has them.
    """
    contents = read(TABLES, path=path).contents
    cancer, wine = (_numbers(contents[name], b",", skip=1) for name in ("breast_cancer.csv", "wine_data.csv"))
    diabetes = _numbers(contents["diabetes_data_raw.csv.gz"], b" ")
    progress = _numbers(contents["diabetes_target.csv.gz"], b" ")[:, 0]
    digits = _numbers(contents["digits.csv.gz"], b",")
    return {
        "breast-cancer": _classes(cancer),
        "wine": _classes(wine),
        "digits": _classes(digits),
        "diabetes": Table(_standardised(diabetes), _standardised(progress)),
    }


def _numbers(content: bytes, separator: bytes, *, skip: int = 0) -> npt.NDArray[np.float64]:
    return np.array([line.split(separator) for line in content.strip().split(b"\n")[skip:]], dtype=np.float64)


def _classes(rows: npt.NDArray[np.float64]) -> Table:
    return Table(_standardised(rows[:, :-1]), rows[:, -1].astype(np.int64))


def _standardised(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    scale = values.std(axis=0)
    return np.asarray((values - values.mean(axis=0)) / np.where(scale > 0, scale, 1.0), dtype=np.float32)
