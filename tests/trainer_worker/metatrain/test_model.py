"""The models: trainable, and equal to themselves however they are asked."""

from typing import Any

import pytest
import torch
from networks import mlp_wiring, random_checkpoint, random_states
from torch_geometric.data import Data

from nowcast_server.nino.laplacian import laplacian_features
from nowcast_server.nino.options import ModelOptions, tensor_shapes
from protos.wiring import Wiring
from trainer_worker.metatrain.model import NiNo, Wnn, build
from trainer_worker.metatrain.reference import edge_features, to_graph

EVERY_PART = {"towers": 2, "vocabulary": 30, "layers": 4, "max_horizon": 6}


def inputs(wiring: Wiring, *, seed: int = 0) -> Data:
    graph = to_graph(wiring)
    graph.edge_attr = edge_features(graph, random_states(wiring, seed=seed), slots=wiring.slots)
    graph.node_pe = laplacian_features(wiring)
    return graph


def run(model: NiNo, graph: Data, **how: Any) -> Any:
    return model(graph.node_pe, graph.edge_index, graph.edge_type, graph.edge_attr, word=graph.word, **how)


@pytest.mark.parametrize("options", [{}, EVERY_PART, {"layers": 1}, {"graph": False, "max_horizon": 3}])
def test_shapes_are_known_without_building(options: dict[str, Any]) -> None:
    """A checkpoint would be refused, or accepted and fail later: the shapes checked are not the model's."""
    chosen = ModelOptions(**options)
    model = (NiNo if chosen.graph else Wnn)(chosen)
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == tensor_shapes(chosen)


@torch.no_grad()
def test_some_horizons_are_rows_of_all() -> None:
    """Inference, which asks for a few horizons, would disagree with what training fitted."""
    model, graph = build(random_checkpoint(**EVERY_PART)), inputs(mlp_wiring(4, 5, 3))
    every = run(model, graph)
    assert every.shape == (graph.num_edges, 1, 6)
    assert torch.allclose(run(model, graph, horizons=(5, 1, 5)), every[..., [4, 0, 4]], atol=1e-6)


@torch.no_grad()
def test_absent_slots_count_as_zero() -> None:
    """Networks without 3x3 kernels, whose edges carry one weight, would be forecast by other columns."""
    model, graph = build(random_checkpoint(slots=4)), inputs(mlp_wiring(4, 5, 3))
    padded = graph.clone()
    padded.edge_attr = torch.nn.functional.pad(graph.edge_attr, (0, 0, 0, 3))
    assert torch.allclose(run(model, padded)[:, :1], run(model, graph), atol=1e-6)


@torch.no_grad()
def test_words_beyond_the_vocabulary_are_plain_neurons() -> None:
    """A model with a larger vocabulary than the checkpoint's would crash the server."""
    model, graph = build(random_checkpoint(vocabulary=2)), inputs(mlp_wiring(4, 5))
    graph.word = torch.tensor([1, 2, 3, 99] + [0] * 6)
    plain = graph.clone()
    plain.word = torch.tensor([1, 2, 0, 0] + [0] * 6)
    assert torch.equal(run(model, graph), run(model, plain))
    assert not torch.equal(run(model, graph), run(model, inputs(mlp_wiring(4, 5))))
