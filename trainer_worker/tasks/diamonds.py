"""The table of diamonds, for examples and benchmarks."""

import csv
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from trainer_worker.tasks.data import DataFile, Dataset, PythonWheel, read

DIAMONDS: Final = Dataset(
    name="diamonds",
    licence="MIT",
    files=(DataFile("diamonds.csv", "9574730b03aba241d899c4a97511c5061b19358fab89510774fb6c24168345c4"),),
    sources=(PythonWheel("plotnine==0.15.9", "plotnine/data"),),
)
"""Price, size and quality of 53,940 stones (ggplot2's table, as plotnine carries it)."""

QUALITIES: Final = {
    "cut": ("Fair", "Good", "Very Good", "Premium", "Ideal"),
    "color": ("J", "I", "H", "G", "F", "E", "D"),
    "clarity": ("I1", "SI2", "SI1", "VS2", "VS1", "VVS2", "VVS1", "IF"),
}
"""From worst to best."""
NUMBERS: Final = ("carat", "depth", "table", "x", "y", "z")


def diamonds(path: str | Path | None = None) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Nine features, qualities as ranks, (stones, 9), and the logarithms of the prices, (stones,), all standardised; rows in an
    order fixed at random.

    Raises:
        DataMissing: no source has it.
    """
    rows = list(csv.DictReader(read(DIAMONDS, path=path).contents["diamonds.csv"].decode("utf-8").splitlines()))
    columns = [[float(row[name]) for row in rows] for name in NUMBERS]
    columns += [[float(ranks.index(row[name])) for row in rows] for name, ranks in QUALITIES.items()]
    features = np.array(columns).T
    price = np.log([float(row["price"]) for row in rows])
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(rows))  # the table is sorted by price
    scaled = (features - features.mean(0)) / features.std(0)
    targets = (price - price.mean()) / price.std()
    return scaled[order].astype(np.float32), targets[order].astype(np.float32)
