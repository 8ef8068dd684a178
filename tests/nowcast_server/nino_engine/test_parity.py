"""Forecasts on the published graphs, against the published code's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from graphs import published, published_wiring
from wirings import TINY

from nowcast_server.nino.checkpoint import load_checkpoint
from nowcast_server.nino.engine import CPU_SIZES, Sizes, StreamingEngine
from nowcast_server.nino.laplacian import laplacian_features
from protos.wiring import EdgeType, Wiring
from trainer_worker.metatrain.reference import Reference, to_graph

NETWORKS = ("mlp", "conv", "conv_bn", "gpt2", "llama", "bert")
TOLERANCE = 1e-5


@pytest.fixture(params=NETWORKS)
def fixture(request: pytest.FixtureRequest, parity: Callable[[str], Any]) -> Any:
    return parity(request.param)


@pytest.fixture
def wiring(fixture: Any) -> Wiring:
    return published_wiring(fixture.params, published(fixture.arrays))


@pytest.mark.parametrize("checkpoint", ["nino_no_posw", "nino_mlp"])
@pytest.mark.parametrize("sizes", [CPU_SIZES, TINY, None], ids=["engine", "tiny", "reference"])
def test_forecasts_are_the_published_ones(fixture: Any, wiring: Wiring, checkpoint: str, sizes: Sizes | None, shared: Path) -> None:
    """Whoever switches from the published code would get other weights loaded, some only once blocks are cut into panels."""
    states, node_pe = (torch.from_numpy(fixture.arrays[name]) for name in ("states", "node_pe"))
    weights = load_checkpoint(shared / "checkpoints" / f"{checkpoint}.pt")
    engine = Reference(weights) if sizes is None else StreamingEngine(weights, sizes=sizes)
    forecasts = engine.forecast(wiring, states, horizons=tuple(fixture.horizons), node_pe=node_pe)
    for horizon, ours in zip(fixture.horizons, forecasts, strict=True):
        theirs = torch.from_numpy(fixture.arrays[f"{checkpoint}_k{horizon}"])
        assert (ours - theirs).norm() <= TOLERANCE * (theirs - states[-1]).norm()


def test_words_are_numbered(fixture: Any, wiring: Wiring) -> None:
    """A word's neuron would get another word's features."""
    graph = to_graph(wiring)
    words = int((graph.edge_type == EdgeType.WORD_EMBEDDING).any()) * fixture.meta.get("vocab_size", 0)
    assert sorted(graph.word.tolist()) == [0] * (wiring.neurons - words) + list(range(1, words + 1))


@pytest.mark.parametrize(("network", "simple"), [("mlp", 2), ("conv", 3), ("conv_bn", 2), ("gpt2", 6), ("llama", 5), ("bert", 7)])
def test_features_are_the_published_ones_where_unique(network: str, simple: int, parity: Callable[[str], Any]) -> None:
    """Our Laplacian features would not be what the published checkpoints were trained with.

    Up to their sign, and before the first repeated eigenvalue, of which ARPACK leaves out a copy in `llama`.
    """
    found = parity(network)
    wiring = published_wiring(found.params, published(found.arrays))
    cosines = (laplacian_features(wiring).T.numpy() @ found.arrays["node_pe"])[:simple, :simple]
    assert np.allclose(np.abs(cosines), np.eye(simple), atol=1e-4)
