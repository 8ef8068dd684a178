"""The paper's convnet: three 3x3 convolutions, global average pooling, a linear layer."""

from collections import OrderedDict

from torch import nn


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
