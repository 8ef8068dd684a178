"""Forecasts on the published graphs, against the published code's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from graphs import expand, published, published_wiring

from nowcast_server.forecasters import load_forecaster
from nowcast_server.nino.graph import to_graph
from nowcast_server.nino.laplacian import laplacian_features
from protos.wiring import EdgeType

NETWORKS = ("mlp", "conv", "conv_bn", "gpt2", "llama", "bert")
TOLERANCE = 1e-5


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("name", "checkpoint"), [("nino", "nino_no_posw"), ("wnn", "nino_mlp")])
def test_forecasts_are_the_published_ones(
    name: str, checkpoint: str, network: str, parity: Callable[[str], Any], shared: Path
) -> None:
    """Whoever switches from the published code would get other weights loaded."""
    fixture = parity(network)
    wiring = published_wiring(fixture.params, published(fixture.arrays))
    states = torch.from_numpy(fixture.arrays["states"])
    forecaster = load_forecaster(name, checkpoint=shared / "checkpoints" / f"{checkpoint}.pt")
    forecasts = forecaster.forecast(wiring, states, fixture.horizons, fixture.arrays["node_pe"])
    for horizon, ours in zip(fixture.horizons, forecasts, strict=True):
        theirs = torch.from_numpy(fixture.arrays[f"{checkpoint}_k{horizon}"])
        assert (ours - theirs).norm() <= TOLERANCE * (theirs - states[-1]).norm()


@pytest.mark.parametrize("network", NETWORKS)
def test_graphs_are_expanded_right(network: str, parity: Callable[[str], Any]) -> None:
    """`to_graph` would disagree with a plain loop over the blocks."""
    fixture = parity(network)
    wiring = published_wiring(fixture.params, published(fixture.arrays))
    graph, plain = to_graph(wiring), expand(wiring)
    assert np.array_equal(graph.edge_index, plain.edge_index)
    assert np.array_equal(graph.edge_type, plain.edge_type)
    assert np.array_equal(graph.param_edge, plain.param_edge)
    assert np.array_equal(graph.param_slot, plain.param_slot)
    words = int((graph.edge_type == EdgeType.WORD_EMBEDDING).any()) * fixture.meta.get("vocab_size", 0)
    assert sorted(graph.word.tolist()) == [0] * (wiring.neurons - words) + list(range(1, words + 1))


@pytest.mark.parametrize(("network", "simple"), [("mlp", 2), ("conv", 3), ("conv_bn", 2), ("gpt2", 6), ("llama", 5), ("bert", 7)])
def test_features_are_the_published_ones_where_unique(network: str, simple: int, parity: Callable[[str], Any]) -> None:
    """Our Laplacian features would not be what the published checkpoints were trained with.

    Up to their sign, and before the first repeated eigenvalue, of which ARPACK leaves out a copy in `llama`.
    """
    fixture = parity(network)
    wiring = published_wiring(fixture.params, published(fixture.arrays))
    cosines = (laplacian_features(wiring).T.numpy() @ fixture.arrays["node_pe"])[:simple, :simple]
    assert np.allclose(np.abs(cosines), np.eye(simple), atol=1e-4)
