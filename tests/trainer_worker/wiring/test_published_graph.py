"""The wiring is the published graph, edge for edge."""

from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from graphs import expand, match, published
from torch import nn

from trainer_worker.wiring import wire


def _mlp(meta: dict[str, Any]) -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(meta["dims"]):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _classifier(name: str, layers: list[nn.Module], width: int, classes: int) -> nn.Module:
    """Under the name that the fixture's parameters carry."""
    return nn.Sequential(
        OrderedDict({name: nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))})
    )


def _conv(meta: dict[str, Any]) -> nn.Module:
    layers: list[nn.Module] = []
    channels = [meta["in_channels"], *meta["hid"]]
    for index, (inputs, outputs) in enumerate(pairwise(channels)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride=2 if index == 0 else 1, padding=0 if index == 0 else 1), nn.ReLU()]
    return _classifier("fc", layers, channels[-1], meta["classes"])


def _conv_bn(meta: dict[str, Any]) -> nn.Module:
    layers: list[nn.Module] = []
    channels = meta["channels"]
    for index, (inputs, outputs) in enumerate(pairwise(channels)):
        bias = index > 0 or meta["first_conv_bias"]
        layers += [nn.Conv2d(inputs, outputs, 3, bias=bias), nn.BatchNorm2d(outputs), nn.ReLU()]
    return _classifier("net", layers, channels[-1], meta["classes"])


def _gpt2(meta: dict[str, Any]) -> nn.Module:
    import transformers

    sizes = {key: value for key, value in meta.items() if key not in {"family", "head"}}
    return getattr(transformers, meta.get("head", "GPT2LMHeadModel"))(transformers.GPT2Config(**sizes))


BUILDERS = {
    "mlp": _mlp,
    "conv": _conv,
    "conv_bn": _conv_bn,
    "gpt2": _gpt2,
}


@pytest.mark.parametrize("name", ["mlp", "conv", "conv_bn"])
def test_graph_identity(parity: Callable[[str], Any], name: str) -> None:
    """Forecasts would differ from the published ones if a single edge, type or structural tie differed."""
    fixture = parity(name)
    model = BUILDERS[fixture.meta["family"]](fixture.meta)
    assert [(label, tuple(p.shape)) for label, p in model.named_parameters()] == fixture.params
    match(expand(wire(model)), published(fixture.arrays))


def test_gpt2_is_the_published_one_but_for_key_biases(parity: Callable[[str], Any]) -> None:
    """Published checkpoints would see another GPT-2: heads, residuals and tied embeddings must be where they are there."""
    fixture = parity("gpt2")
    traced, theirs = expand(wire(BUILDERS[fixture.meta["family"]](fixture.meta))), published(fixture.arrays)
    assert traced.neurons == theirs.neurons
    assert np.array_equal(np.bincount(traced.edge_type), np.bincount(theirs.edge_type))
    assert np.array_equal(traced.edge_type[traced.param_edge], theirs.edge_type[theirs.param_edge])
