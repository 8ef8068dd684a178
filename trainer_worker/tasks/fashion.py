"""Fashion-MNIST classification with the paper's convnets."""

from collections import OrderedDict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from trainer_worker.tasks.datasets import Pictures, fashion_mnist
from trainer_worker.tasks.task import Split, Task

HELD_OUT = 12
"""The last 1/12 of the training pictures is held out for validation, as in the paper."""
MEAN, STD = 0.1307, 0.3081
"""Of MNIST, not of Fashion-MNIST: what the paper's protocol uses, kept so that learning rates and targets carry over."""


def convnet(width: int, *, channels: int = 1, classes: int = 10) -> nn.Sequential:
    """Three 3x3 convolutions of `width`, 2 `width` and 2 `width` channels, the first with stride 2 and without padding.

    Shapes: (batch, channels, height, width) -> (batch, classes)

    Source: the tasks FM/16, FM/32, C10/16, ... of the NiNo paper (arXiv 2409.04434).
    """
    layers: list[tuple[str, nn.Module]] = [
        ("conv1", nn.Conv2d(channels, width, 3, stride=2)),
        ("relu1", nn.ReLU()),
        ("conv2", nn.Conv2d(width, 2 * width, 3, padding=1)),
        ("relu2", nn.ReLU()),
        ("conv3", nn.Conv2d(2 * width, 2 * width, 3, padding=1)),
        ("relu3", nn.ReLU()),
        ("pool", nn.AdaptiveAvgPool2d(1)),
        ("flatten", nn.Flatten()),
        ("head", nn.Linear(2 * width, classes)),
    ]
    return nn.Sequential(OrderedDict(layers))


def fashion_task(*, width: int, data: Path | None = None) -> Task:
    """The paper's task FM/`width`: 55,000 training, 5,000 validation and 10,000 test pictures.

    Raises:
        DataMissing: no source has Fashion-MNIST.
    """
    train, test = (_split(pictures) for pictures in fashion_mnist(data))
    kept = len(train) - len(train) // HELD_OUT
    validation = Split(train.inputs[kept:], train.targets[kept:])
    return Task(partial(convnet, width), train=train.first(kept), validation=validation, test=test)


def _split(pictures: Pictures) -> Split:
    images = (pictures.images.astype(np.float32) / 255 - MEAN) / STD
    return Split(torch.from_numpy(images).unsqueeze(1), torch.from_numpy(pictures.labels.astype(np.int64)))
