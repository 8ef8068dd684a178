"""The models: trainable, equal to themselves however they are asked, and as training computes them to the readable reference."""

from typing import Any

import pytest
import torch
from networks import mlp_wiring, random_checkpoint, random_states
from torch_geometric.data import Data

from nowcast_server.nino.checkpoint import ModelOptions
from nowcast_server.nino.laplacian import laplacian_features
from protos.wiring import Wiring
from trainer_worker.metatrain.folded import forecast_change
from trainer_worker.metatrain.library import wiring_of
from trainer_worker.metatrain.model import NiNo, build
from trainer_worker.metatrain.networks import Design
from trainer_worker.metatrain.plan import plan
from trainer_worker.metatrain.reference import Standardisation, edge_features, to_graph
from trainer_worker.metatrain.windows import fit_scales


def inputs(wiring: Wiring, *, seed: int = 0) -> Data:
    graph = to_graph(wiring)
    graph.edge_attr = edge_features(graph, random_states(wiring, seed=seed), slots=wiring.slots)
    graph.node_pe = laplacian_features(wiring)
    return graph


def run(model: NiNo, graph: Data, **how: Any) -> Any:
    return model(graph.node_pe, graph.edge_index, graph.edge_type, graph.edge_attr, word=graph.word, **how)


@torch.no_grad()
def test_words_beyond_the_vocabulary_are_plain_neurons() -> None:
    """A model with a larger vocabulary than the checkpoint's would crash the server."""
    model, graph = build(random_checkpoint(vocabulary=2)), inputs(mlp_wiring(4, 5))
    graph.word = torch.tensor([1, 2, 3, 99] + [0] * 6)
    plain = graph.clone()
    plain.word = torch.tensor([1, 2, 0, 0] + [0] * 6)
    assert torch.equal(run(model, graph), run(model, plain))
    assert not torch.equal(run(model, graph), run(model, inputs(mlp_wiring(4, 5))))


HORIZONS = (1, 5, 40)
DESIGNS = (
    Design(kind="convnet", inputs=1, outputs=10, widths=(8, 16), strides=(2, 1), pooled=(False, False), norm="batch"),
    Design(kind="mlp", inputs=30, outputs=10, widths=(20, 16), norm="layer"),
    Design(kind="gpt", inputs=40, outputs=40, widths=(16, 16), heads=2, tokens=12, norm="layer"),
)


@pytest.mark.parametrize("design", DESIGNS, ids=lambda design: design.kind)
def test_same_forecast_and_gradients_as_the_reference(design: Design) -> None:
    """A fit would minimise the error of another function than the one that serves."""
    torch.manual_seed(0)
    model = NiNo(ModelOptions(hidden=24))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    wiring = wiring_of(design)
    laid, graph = plan(wiring), to_graph(wiring)
    z = torch.randn(2, 5, wiring.size)
    node_pe = laid.node_pe * torch.tensor([1.0, -1.0])[:, None, None]
    folded = forecast_change(model, laid, z, node_pe, horizons=HORIZONS)
    reference = []
    for index in range(2):
        features = edge_features(graph, z[index], slots=wiring.slots)
        forecast = model(node_pe[index], graph.edge_index, graph.edge_type, features, horizons=HORIZONS) - features[:, :, -1:]
        reference.append(forecast[graph.param_edge[laid.weights], graph.param_slot[laid.weights]])
    expected = torch.stack(reference)
    assert (folded - expected).norm() <= 1e-5 * expected.norm()
    assert sorted(laid.weights.tolist()) == torch.nonzero(graph.param_edge >= 0).flatten().tolist()

    towards = torch.randn_like(expected)
    pairs = zip(
        torch.autograd.grad((folded * towards).sum(), list(model.parameters()), allow_unused=True),
        torch.autograd.grad((expected * towards).sum(), list(model.parameters()), allow_unused=True),
        strict=True,
    )
    for ours, theirs in pairs:
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert (ours - theirs).norm() <= 1e-4 * theirs.norm() + 1e-6


def test_scales_are_those_of_the_reference_and_of_a_whole_tensor() -> None:
    """The model would be fitted to inputs scaled otherwise than those it is served; weights that never move would become NaN."""
    torch.manual_seed(0)
    sizes = (7, 5, 2)
    states = torch.randn(3, 5, 14) * torch.tensor([1.0] * 7 + [0.01] * 5 + [0.0] * 2)
    mean, scale = fit_scales(states, sizes)
    for index in range(3):
        expected = Standardisation.fit(states[index], sizes)
        assert torch.allclose(mean[index, 0], expected.mean, atol=1e-6)
        assert torch.allclose(scale[index, 0], expected.scale, atol=1e-6)
        parts = states[index].split(sizes, dim=1)
        assert torch.allclose(expected.scale, torch.cat([part.std().expand(part.shape[1]) for part in parts]), atol=1e-6)
        assert not expected.apply(states[index])[:, 12:].any()
        assert torch.allclose(expected.invert(expected.apply(states[index])), states[index], atol=1e-4)
