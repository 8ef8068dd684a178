"""The wiring is the published graph, edge for edge."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from graphs import expand, match, published
from published_networks import build

from trainer_worker.wiring import wire


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
