"""The models against the published forecasts, on the published graphs: says whether a model, rather than a wiring, is wrong."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric.data import Data

from nowcast_server.nino.checkpoint import load_checkpoint
from nowcast_server.nino.reference import build_nino, build_wnn, edge_features
from nowcast_server.nino.standardise import Standardisation

NETWORKS = ("mlp", "conv", "conv_bn", "gpt2", "llama", "bert")
TOLERANCE = 1e-5


def published_graph(fixture: Any) -> Data:
    names = ("edge_index", "edge_type", "param_edge", "param_slot")
    return Data(**{name: torch.from_numpy(fixture.arrays[name]).long() for name in names})


def relative_errors(fixture: Any, checkpoint: str, forecasts: Tensor) -> list[float]:
    last = torch.from_numpy(fixture.arrays["states"][-1])
    theirs = [torch.from_numpy(fixture.arrays[f"{checkpoint}_k{horizon}"]) for horizon in fixture.horizons]
    return [float((ours - other).norm() / (other - last).norm()) for ours, other in zip(forecasts, theirs, strict=True)]


def standardise(fixture: Any) -> tuple[Standardisation, Tensor]:
    states = torch.from_numpy(fixture.arrays["states"])
    standardisation = Standardisation.fit(states, [torch.Size(shape).numel() for _, shape in fixture.params])
    return standardisation, standardisation.apply(states)


@pytest.mark.parametrize("network", NETWORKS)
@torch.no_grad()
def test_nino_equals_the_published_code(network: str, parity: Callable[[str], Any], shared: Path) -> None:
    """Every formula of the graph network, its standardisation and its checkpoint's names are as published."""
    fixture = parity(network)
    graph = published_graph(fixture)
    standardisation, z = standardise(fixture)
    model = build_nino(load_checkpoint(shared / "checkpoints" / "nino_no_posw.pt"))
    features = edge_features(graph, z, slots=int(graph.param_slot.max()) + 1)
    node_pe = torch.from_numpy(fixture.arrays["node_pe"])
    out = model(node_pe, graph.edge_index, graph.edge_type, features, horizons=fixture.horizons)
    forecasts = standardisation.invert(out[graph.param_edge, graph.param_slot].T)
    assert max(relative_errors(fixture, "nino_no_posw", forecasts)) <= TOLERANCE


@pytest.mark.parametrize("network", NETWORKS)
@torch.no_grad()
def test_wnn_equals_the_published_code(network: str, parity: Callable[[str], Any], shared: Path) -> None:
    """Every formula of WNN+ and its checkpoint's names are as published."""
    fixture = parity(network)
    graph = published_graph(fixture)
    standardisation, z = standardise(fixture)
    model = build_wnn(load_checkpoint(shared / "checkpoints" / "nino_mlp.pt"))
    out = model(z.T, graph.edge_type[graph.param_edge], horizons=fixture.horizons)
    assert max(relative_errors(fixture, "nino_mlp", standardisation.invert(out.T))) <= TOLERANCE
