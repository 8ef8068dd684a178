"""Fashion-MNIST: 70,000 grey pictures of clothes, 28x28, in ten classes (Xiao, Rasul, Vollgraf 2017, arXiv 1708.07747; MIT)."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trainer_worker.datasets.dataset import DataFile, Dataset, read
from trainer_worker.datasets.idx import parse_idx
from trainer_worker.datasets.sources import DebianPackage, Download

FASHION_MNIST = Dataset(
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


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """Pictures and their classes.

    Args:
        images: (examples, height, width) uint8.
        labels: (examples,) uint8.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]


def fashion_mnist(path: str | Path | None = None) -> tuple[LabelledImages, LabelledImages]:
    """The 60,000 training and the 10,000 test pictures.

    Args:
        path: a folder that holds the four files; by default they are looked for and fetched (`trainer_worker.datasets.read`).

    Raises:
        DataMissing: no source has them.
    """
    contents = read(FASHION_MNIST, path=path).contents
    train, test = (
        LabelledImages(parse_idx(contents[f"{part}-images-idx3-ubyte.gz"]), parse_idx(contents[f"{part}-labels-idx1-ubyte.gz"]))
        for part in ("train", "t10k")
    )
    return train, test
