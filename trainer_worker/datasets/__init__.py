"""Real data for the tasks: where each set comes from, checked by content, kept on disk."""

from trainer_worker.datasets.animals import ANIMALS
from trainer_worker.datasets.dataset import DataFile, DataMissing, Dataset, Held, Source, SourceFailed, read, store
from trainer_worker.datasets.diamonds import DIAMONDS
from trainer_worker.datasets.factbook import FACTBOOK
from trainer_worker.datasets.fashion_mnist import FASHION_MNIST
from trainer_worker.datasets.king_james import KING_JAMES
from trainer_worker.datasets.mnist_5k import MNIST_5K
from trainer_worker.datasets.tables import TABLES
from trainer_worker.datasets.wikipedia import WIKIPEDIA

DATASETS: dict[str, Dataset] = {
    dataset.name: dataset for dataset in (FASHION_MNIST, MNIST_5K, ANIMALS, KING_JAMES, FACTBOOK, WIKIPEDIA, TABLES, DIAMONDS)
}
"""Data sets by name."""

__all__ = [
    "DATASETS",
    "FASHION_MNIST",
    "DataFile",
    "DataMissing",
    "Dataset",
    "Held",
    "Source",
    "SourceFailed",
    "read",
    "store",
]
