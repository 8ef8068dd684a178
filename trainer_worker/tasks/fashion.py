"""Fashion-MNIST classification with the paper's convnets."""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trainer_worker.datasets.fashion_mnist import LabelledImages, fashion_mnist
from trainer_worker.tasks.convnet import convnet
from trainer_worker.tasks.task import Task, TensorSplit

HELD_OUT = 12
"""The last 1/12 of the training pictures is held out for validation, as in the paper."""
MEAN, STD = 0.1307, 0.3081
"""Of MNIST, not of Fashion-MNIST: what the paper's protocol uses, kept so that learning rates and targets carry over."""


def fashion_task(*, width: int, data: Path | None = None) -> Task:
    """The paper's task FM/`width`: 55,000 training, 5,000 validation and 10,000 test pictures.

    Raises:
        DataMissing: no source has Fashion-MNIST.
    """
    train, test = fashion_mnist(data)
    images, labels = _tensors(train)
    kept = len(labels) - len(labels) // HELD_OUT
    return Task(
        build=partial(convnet, width),
        train=TensorSplit(images[:kept], labels[:kept]),
        validation=TensorSplit(images[kept:], labels[kept:]),
        test=TensorSplit(*_tensors(test)),
    )


def _tensors(examples: LabelledImages) -> tuple[Tensor, Tensor]:
    images = (examples.images.astype(np.float32) / 255 - MEAN) / STD
    return torch.from_numpy(images).unsqueeze(1), torch.from_numpy(examples.labels.astype(np.int64))
