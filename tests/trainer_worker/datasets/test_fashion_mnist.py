"""Fashion-MNIST and its file format."""

import numpy as np
import pytest

from trainer_worker.datasets import DataMissing
from trainer_worker.datasets.fashion_mnist import fashion_mnist
from trainer_worker.datasets.idx import parse_idx


def test_idx_holds_a_row_major_array() -> None:
    """Sizes are big-endian and the last dimension runs fastest; either one wrong scrambles every picture."""
    content = bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 4, 5, 6])
    assert parse_idx(content).tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0\x08",
        b"PK\x08\x01\0\0\0\x01x",
        b"\0\0\x0d\x01\0\0\0\x01x",
        b"\0\0\x08\x01\0\0\0\x02x",
        b"\0\0\x08\x02\0\0\0\x01x",
    ],
    ids=["empty", "cut in the magic", "other format", "floats", "too short", "cut in the sizes"],
)
def test_what_is_not_idx_is_refused(content: bytes) -> None:
    """A damaged file is an error instead of pictures of noise."""
    with pytest.raises(ValueError, match="IDX"):
        parse_idx(content)


def test_fashion_mnist_is_whole() -> None:
    """The real set, from wherever this machine has it: sizes, balance of classes, value range."""
    try:
        train, test = fashion_mnist()
    except DataMissing as missing:
        pytest.skip(str(missing))
    assert train.images.shape == (60_000, 28, 28)
    assert test.images.shape == (10_000, 28, 28)
    assert np.bincount(train.labels).tolist() == [6000] * 10
    assert np.bincount(test.labels).tolist() == [1000] * 10
    assert (train.images.min(), train.images.max()) == (0, 255)
