"""The data that only the benchmark uses."""

import sys
from pathlib import Path

import numpy as np
import pytest

from trainer_worker.tasks.data import DataMissing

sys.path.append(str(Path(__file__).parents[2] / "bench" / "acceleration"))

from benchmark_data import animals, photographs, wikipedia


def test_animals_articles_and_photographs() -> None:
    """Duplicates would straddle the splits, or markup be modelled instead of prose."""
    try:
        (images, labels), articles, sights = animals(), wikipedia(), photographs()
    except DataMissing as missing:
        pytest.skip(str(missing).splitlines()[0])
    assert images.shape == (9716, 28, 28)
    assert len(np.unique(images, axis=0)) == 9716
    assert np.bincount(labels).min() > 800
    assert 2_500_000 < len(articles) < 3_500_000
    assert articles.count("[[") < 100
    assert all(sight.shape[2] == 3 and sight.max() <= 1 for sight in sights)
