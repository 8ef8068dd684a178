"""The wiring is the published graph, edge for edge."""

from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import transformers
from graphs import expand, match, published
from torch import nn

from trainer_worker.wiring import wire


def build(meta: dict[str, Any]) -> nn.Module:
    """The network of a fixture, under the names that its parameters carry."""
    layers: list[nn.Module] = []
    if meta["family"] == "gpt2":
        sizes = {key: value for key, value in meta.items() if key not in {"family", "head"}}
        return getattr(transformers, meta.get("head", "GPT2LMHeadModel"))(transformers.GPT2Config(**sizes))
    if meta["family"] == "mlp":
        for inputs, outputs in pairwise(meta["dims"]):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        return nn.Sequential(*layers[:-1])
    plain = meta["family"] == "conv"
    channels = [meta["in_channels"], *meta["hid"]] if plain else meta["channels"]
    for index, (inputs, outputs) in enumerate(pairwise(channels)):
        if plain:
            layers += [nn.Conv2d(inputs, outputs, 3, stride=2 - min(index, 1), padding=min(index, 1)), nn.ReLU()]
        else:
            bias = index > 0 or meta["first_conv_bias"]
            layers += [nn.Conv2d(inputs, outputs, 3, bias=bias), nn.BatchNorm2d(outputs), nn.ReLU()]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], meta["classes"]))
    return nn.Sequential(OrderedDict({"fc" if plain else "net": net}))


@pytest.mark.parametrize("name", ["mlp", "conv", "conv_bn"])
def test_graph_identity(parity: Callable[[str], Any], name: str) -> None:
    """Forecasts would differ from the published ones if a single edge, type or structural tie differed."""
    fixture = parity(name)
    model = build(fixture.meta)
    assert [(label, tuple(p.shape)) for label, p in model.named_parameters()] == fixture.params
    match(expand(wire(model)), published(fixture.arrays))


def test_gpt2_is_the_published_one_but_for_key_biases(parity: Callable[[str], Any]) -> None:
    """Published checkpoints would see another GPT-2: heads, residuals and tied embeddings must be where they are there."""
    fixture = parity("gpt2")
    traced, theirs = expand(wire(build(fixture.meta))), published(fixture.arrays)
    assert traced.neurons == theirs.neurons
    assert np.array_equal(np.bincount(traced.edge_type), np.bincount(theirs.edge_type))
    assert np.array_equal(traced.edge_type[traced.param_edge], theirs.edge_type[theirs.param_edge])
