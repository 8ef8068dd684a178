"""Layers that NiNo and WNN share."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from torch import Tensor, nn

_ACTIVATIONS: Final[dict[str, type[nn.Module]]] = {"silu": nn.SiLU, "relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}

INITIAL_STD = 0.02


def activation(name: str) -> nn.Module:
    return _ACTIVATIONS[name]()


class Mlp(nn.Sequential):
    """Linear layers of the given widths with activations between them, none after the last."""

    def __init__(self, widths: Sequence[int], *, act: str) -> None:
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise(widths):
            layers += [nn.Linear(width_in, width_out), activation(act)]
        super().__init__(*layers[:-1])


def project(layers: nn.Sequential, x: Tensor) -> Tensor:
    """Apply `layers` to inputs that may lack trailing columns: columns that are absent count as zero."""
    first, *rest = layers.children()
    assert isinstance(first, nn.Linear)
    x = nn.functional.linear(x, first.weight[:, : x.shape[-1]], first.bias)
    for layer in rest:
        x = layer(x)
    return x


def initialise(module: nn.Module) -> None:
    """Weights from N(0, 0.02^2), biases zero: how NiNo starts its meta-training. Use with `Module.apply`."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=INITIAL_STD)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
