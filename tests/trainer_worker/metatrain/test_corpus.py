"""The data that meta-training draws on."""

import numpy as np
import pytest

from trainer_worker.metatrain.datasets import factbook, mnist_5k, tables
from trainer_worker.tasks.data import DataMissing


def test_what_meta_training_reads() -> None:
    """Pictures and labels torn apart, markup instead of prose, or columns of the wrong scale would be fitted to."""
    try:
        (images, labels), text, numbers = mnist_5k(), factbook(), tables()
    except DataMissing as missing:
        pytest.skip(str(missing).splitlines()[0])
    assert images.shape == (5000, 28, 28)
    assert np.bincount(labels).tolist() == [500] * 10
    assert len(text) > 4_000_000
    for features, targets in numbers.values():
        assert np.isfinite(features).all()
        assert np.allclose(features.mean(0), 0.0, atol=1e-4)
        assert len(features) == len(targets)
