"""Fashion-MNIST classification with the paper's convnets."""

from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from trainer_worker.tasks.data import DataFile, Dataset, DebianPackage, Download, read
from trainer_worker.tasks.task import Task, TensorSplit

FASHION_MNIST: Final = Dataset(
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
"""70,000 grey pictures of clothes, 28x28, in ten classes (Xiao, Rasul, Vollgraf 2017, arXiv 1708.07747)."""

HELD_OUT = 12
"""The last 1/12 of the training pictures is held out for validation, as in the paper."""
MEAN, STD = 0.1307, 0.3081
"""Of MNIST, not of Fashion-MNIST: what the paper's protocol uses, kept so that learning rates and targets carry over."""


class Pictures(NamedTuple):
    """Images (examples, height, width) and their classes (examples,), both uint8."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]


def fashion_mnist(path: str | Path | None = None) -> tuple[Pictures, Pictures]:
    """The 60,000 training and the 10,000 test pictures, 28x28; `path` as in `data.read`.

    Raises:
        DataMissing: no source has them.
    """
    contents = read(FASHION_MNIST, path=path).contents
    bytes_of = {name: np.frombuffer(content, dtype=np.uint8) for name, content in contents.items()}
    train, test = (  # the headers of IDX files: four bytes of type, four for each dimension
        Pictures(bytes_of[f"{part}-images-idx3-ubyte.gz"][16:].reshape(-1, 28, 28), bytes_of[f"{part}-labels-idx1-ubyte.gz"][8:])
        for part in ("train", "t10k")
    )
    return train, test


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
    validation = TensorSplit(train.inputs[kept:], train.targets[kept:])
    return Task(partial(convnet, width), train=train.first(kept), validation=validation, test=test)


def _split(pictures: Pictures) -> TensorSplit:
    images = (pictures.images.astype(np.float32) / 255 - MEAN) / STD
    return TensorSplit(torch.from_numpy(images).unsqueeze(1), torch.from_numpy(pictures.labels.astype(np.int64)))
