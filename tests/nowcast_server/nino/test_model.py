"""The graph network: trainable, stateless, and equal to itself however it is asked."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from networks import mlp_wiring, random_checkpoint, random_states
from torch import Tensor
from torch_geometric.data import Batch, Data

from nowcast_server.nino.graph import to_graph
from nowcast_server.nino.laplacian import laplacian_features
from nowcast_server.nino.model import NiNo
from nowcast_server.nino.options import ModelOptions, tensor_shapes
from nowcast_server.nino.reference import build_nino, edge_features
from nowcast_server.nino.wnn import Wnn
from protos.wiring import Wiring

EVERY_PART = {"towers": 2, "vocabulary": 30, "input_layers": 2, "final_edge_update": True, "max_horizon": 6}


def inputs(wiring: Wiring, *, seed: int = 0) -> Data:
    graph = to_graph(wiring)
    graph.edge_attr = edge_features(graph, random_states(wiring, seed=seed), slots=wiring.slots)
    graph.node_pe = laplacian_features(wiring)
    return graph


def run(model: NiNo, graph: Data, **how: Any) -> Any:
    return model(graph.node_pe, graph.edge_index, graph.edge_type, graph.edge_attr, word=graph.word, **how)


@pytest.mark.parametrize(
    "options",
    [
        {},
        EVERY_PART,
        {"laplacian": 0, "vocabulary": 3, "edge_types": 0, "layers": 1},
        {"graph": False},
        {"graph": False, "edge_types": 0, "input_layers": 2, "max_horizon": 3},
    ],
)
def test_shapes_are_known_without_building(options: dict[str, Any]) -> None:
    """A checkpoint would be refused, or accepted and fail later: the shapes checked are not the model's."""
    chosen = ModelOptions(**options)
    model = (NiNo if chosen.graph else Wnn)(chosen)
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == tensor_shapes(chosen)


@torch.no_grad()
def test_some_horizons_are_rows_of_all() -> None:
    """Inference, which asks for a few horizons, would disagree with what training fitted."""
    model, graph = build_nino(random_checkpoint(**EVERY_PART)), inputs(mlp_wiring(4, 5, 3))
    every = run(model, graph)
    assert every.shape == (graph.num_edges, 1, 6)
    assert torch.allclose(run(model, graph, horizons=(5, 1, 5)), every[..., [4, 0, 4]], atol=1e-6)


@torch.no_grad()
def test_absent_slots_count_as_zero() -> None:
    """Networks without 3x3 kernels, whose edges carry one weight, would be forecast by other columns."""
    model, graph = build_nino(random_checkpoint(slots=4)), inputs(mlp_wiring(4, 5, 3))
    padded = graph.clone()
    padded.edge_attr = torch.nn.functional.pad(graph.edge_attr, (0, 0, 0, 3))
    assert torch.allclose(run(model, padded)[:, :1], run(model, graph), atol=1e-6)


@torch.no_grad()
def test_a_batch_is_its_graphs() -> None:
    """Meta-training on batches would mix the networks of a batch."""
    model, graphs = build_nino(random_checkpoint(**EVERY_PART)), [inputs(mlp_wiring(4, 5, 3)), inputs(mlp_wiring(2, 7), seed=1)]
    batch = Batch.from_data_list(graphs)
    alone = torch.cat([run(model, graph) for graph in graphs])
    assert torch.allclose(run(model, batch), alone, atol=1e-6)


def test_every_weight_that_matters_is_trained() -> None:
    """Meta-training would leave a part of the model as it was initialised."""
    model, graph = NiNo(ModelOptions(hidden=8, layers=2, max_horizon=3)), inputs(mlp_wiring(4, 5, 3))
    run(model, graph).square().mean().backward()
    idle = {name.split(".")[0] + "." + name.split(".")[1] for name, weight in model.named_parameters() if weight.grad is None}
    assert idle == {"convs.1"}  # the last convolution reaches no forecast


def test_it_learns() -> None:
    """Gradients of the wrong sign or scale: some steps of Adam must fit one batch."""
    torch.manual_seed(0)
    model, graph = NiNo(ModelOptions(hidden=16, layers=2, max_horizon=2)), inputs(mlp_wiring(4, 6, 3))
    first, last = graph.edge_attr[..., :1], graph.edge_attr[..., -1:]
    target = last + (last - first) * torch.tensor([1.0, 2.0])  # (E, 1, 2): the line goes on
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses: list[float] = []
    for _ in range(300):
        loss = (run(model, graph) - target).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@torch.no_grad()
def test_embeddings() -> None:
    """Node embeddings need the last convolution, which forecasts skip."""
    model, graph = build_nino(random_checkpoint()), inputs(mlp_wiring(4, 5, 3))
    neurons, edges = run(model, graph, return_embedding=True)
    assert neurons.shape == (graph.num_nodes, 16)
    assert edges.shape == (graph.num_edges, 16)
    for weight in model.convs[2].parameters():
        weight.zero_()
    changed, same = run(model, graph, return_embedding=True)
    assert not changed.any()
    assert torch.equal(edges, same)


@torch.no_grad()
def test_words_beyond_the_vocabulary_are_plain_neurons() -> None:
    """A model with a larger vocabulary than the checkpoint's would crash the server."""
    model, graph = build_nino(random_checkpoint(vocabulary=2)), inputs(mlp_wiring(4, 5))
    graph.word = torch.tensor([1, 2, 3, 99] + [0] * 6)
    plain = graph.clone()
    plain.word = torch.tensor([1, 2, 0, 0] + [0] * 6)
    assert torch.equal(run(model, graph), run(model, plain))
    assert not torch.equal(run(model, graph), run(model, inputs(mlp_wiring(4, 5))))


@torch.no_grad()
def test_nothing_is_written_to() -> None:
    """Served concurrently, a model that changes its weights or its arguments forecasts nonsense now and then."""
    model, graph = build_nino(random_checkpoint(**EVERY_PART)), inputs(mlp_wiring(4, 5, 3))
    before, weights = graph.clone(), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    run(model, graph, horizons=(2,))
    run(model, graph, return_embedding=True)
    assert all(torch.equal(graph[key], before[key]) for key in before.to_dict() if isinstance(graph[key], Tensor))
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


@torch.no_grad()
def test_one_instance_serves_different_networks_at_once() -> None:
    """Two jobs whose forecasts overlap in time would get each other's, or garbage."""
    model = build_nino(random_checkpoint(hidden=32))
    graphs = [inputs(mlp_wiring(30, 40, 20)), inputs(mlp_wiring(7, 5, 60, 9))]
    alone = [run(model, graph, horizons=(1, 40)) for graph in graphs]

    def forecast(index: int) -> Tensor:
        with torch.no_grad():
            return run(model, graphs[index % 2], horizons=(1, 40))

    with ThreadPoolExecutor(4) as pool:
        for index, together in enumerate(pool.map(forecast, range(24))):
            assert torch.equal(together, alone[index % 2])
