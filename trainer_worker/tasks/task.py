"""A task: a network, its data, which examples make up a batch, and how it is evaluated; Fashion-MNIST with the paper's convnets."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer_worker.tasks import TASKS
from trainer_worker.tasks.data import Pictures, fashion_mnist

HELD_OUT = 12  # the last 1/12 of the training pictures is held out for validation, as in the paper
MEAN, STD = 0.1307, 0.3081  # MNIST's, as in the paper's protocol, so that learning rates and targets carry over


@dataclass(frozen=True, slots=True)
class Split:
    """Examples that can be taken by index."""

    inputs: Tensor  # (examples, ...)
    targets: Tensor  # (examples, ...)

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The inputs and targets of the examples `indices` (batch,) int64, on the split's device."""
        indices = indices.to(self.targets.device)
        return self.inputs[indices], self.targets[indices]

    def first(self, count: int | None) -> "Split":
        """The first `count` examples; all if there are fewer, or if it is None."""
        return Split(self.inputs[:count], self.targets[:count])


@dataclass(frozen=True, slots=True)
class Task:
    build: Callable[[], nn.Module]  # makes the network, its weights drawn from torch's global generator
    train: Split
    validation: Split  # decisions are taken on it
    test: Split  # results are reported on it


@lru_cache(maxsize=4)
def _order(examples: int, seed: int, epoch: int) -> Tensor:
    # numpy promises the raw stream of a bit generator for ever; permutations, numpy's or torch's, may change with a version
    return torch.from_numpy(np.argsort(np.random.PCG64([seed, epoch]).random_raw(examples), kind="stable"))


def batch_indices(examples: int, *, batch_size: int, seed: int, step: int, rank: int = 0, world: int = 1) -> Tensor:
    """This rank's share of the batch of `step`, counted from 0: (batch_size / world,) int64, a function of seed and step alone, so
    that a resumed run and a compared arm see the same. Every epoch is a new permutation of all examples; a batch may span two. Rank
    r takes every `world`-th place from r on: all ranks together see the same batch whatever their number.
    """
    places = torch.arange(step * batch_size + rank, (step + 1) * batch_size, world)
    epochs = places // examples
    touched = range(int(epochs[0]), int(epochs[-1]) + 1)
    return torch.cat([_order(examples, seed, epoch)[places[epochs == epoch] % examples] for epoch in touched])


@torch.no_grad()
def evaluate(model: nn.Module, split: Split, *, batch_size: int = 500, rank: int = 0, world: int = 1) -> Tensor:
    """Sums over this rank's share of a split: (loss, correct, examples), float64, to be summed over the ranks. The batches are
    the same whatever the number of ranks; rank r takes every `world`-th of them from r on.
    """
    training = model.training
    model.eval()
    sums = torch.zeros(3, dtype=torch.float64)
    for start in range(rank * batch_size, len(split), world * batch_size):
        inputs, targets = split.take(torch.arange(start, min(start + batch_size, len(split))))
        outputs = model(inputs)
        right = (outputs.argmax(-1) == targets).float().mean()
        mean = torch.stack([functional.cross_entropy(outputs, targets), right]).double().cpu()
        sums += torch.cat([mean, torch.ones(1, dtype=torch.float64)]) * len(targets)
    model.train(training)
    return sums


def convnet(width: int) -> nn.Sequential:
    """Three 3x3 convolutions of `width`, 2 `width` and 2 `width` channels, the first with stride 2 and without padding.

    Shapes: (batch, 1, height, width) -> (batch, 10). Source: the tasks FM/16 and FM/32 of the NiNo paper (arXiv 2409.04434).
    """
    layers: list[tuple[str, nn.Module]] = [
        ("conv1", nn.Conv2d(1, width, 3, stride=2)),
        ("relu1", nn.ReLU()),
        ("conv2", nn.Conv2d(width, 2 * width, 3, padding=1)),
        ("relu2", nn.ReLU()),
        ("conv3", nn.Conv2d(2 * width, 2 * width, 3, padding=1)),
        ("relu3", nn.ReLU()),
        ("pool", nn.AdaptiveAvgPool2d(1)),
        ("flatten", nn.Flatten()),
        ("head", nn.Linear(2 * width, 10)),
    ]
    return nn.Sequential(OrderedDict(layers))


def load_task(name: str, *, data: Path | None = None, examples: int | None = None, device: torch.device | None = None) -> Task:
    """The task `name`, its data read from a folder, or found or fetched, and checked; at most so many examples in each split.

    Of Fashion-MNIST 55,000 pictures are for training, 5,000 for validation and 10,000 for tests.
    Raises KeyError: no such task; DataMissing: no source has its data.
    """
    train, test = (_split(pictures, device) for pictures in fashion_mnist(data))
    kept = len(train) - len(train) // HELD_OUT
    validation = Split(train.inputs[kept:], train.targets[kept:])
    return Task(partial(convnet, TASKS[name]), *(split.first(examples) for split in (train.first(kept), validation, test)))


def _split(pictures: Pictures, device: torch.device | None) -> Split:
    images = (pictures.images.astype(np.float32) / 255 - MEAN) / STD
    inputs, targets = torch.from_numpy(images).unsqueeze(1), torch.from_numpy(pictures.labels.astype(np.int64))
    return Split(inputs.to(device), targets.to(device))
