"""The reference: the graph of a wiring edge by edge, and the scales of its weights."""

import torch
from networks import random_states

from nowcast_server.nino.options import EPSILON
from protos.wiring import Block, EdgeType, Parameter, Wiring
from trainer_worker.metatrain.reference import Standardisation, edge_features, to_graph

CONV = Wiring(
    # 2 input channels, 3 output channels, a 2x2 kernel; a diagonal, a word embedding, and a scalar in no block
    parameters=(
        Parameter("conv", (3, 2, 2, 2)),
        Parameter("scale", (3,)),
        Parameter("words", (2, 3)),
        Parameter("temperature", ()),
    ),
    neurons=10,
    blocks=(
        Block(3, 0, 2, 2, 3, parameter=0, source_stride=4, target_stride=8, slots=4, slot_stride=1),
        Block(4, 2, 3, 5, 3, diagonal=True, parameter=1, source_stride=1),
        Block(10, 2, 3, 5, 3, diagonal=True),
        Block(5, 8, 2, 2, 3, parameter=2, source_stride=3, target_stride=1),
    ),
)


def test_features_of_edges() -> None:
    """Structure and self loops carry their constants raw, weights their standardised snapshots, and empty slots zero."""
    graph, z = to_graph(CONV), random_states(CONV)
    features = edge_features(graph, z, slots=CONV.slots)
    assert features.shape == (CONV.edges, 4, 5)
    assert torch.equal(features[graph.param_edge[:-1], graph.param_slot[:-1]], z.T[:-1])
    assert (features[graph.edge_type == EdgeType.RESIDUAL, 0] == 1).all()
    assert (features[graph.edge_type == EdgeType.SELF_LOOP, 0] == 2).all()
    assert not features[graph.edge_type != EdgeType.CONVOLUTION, 1:].any()


STATES = torch.tensor([[1.0, 2.0, 10.0, 0.5], [3.0, 4.0, 30.0, 0.5]])  # (context, n)
FITTED = Standardisation.fit(STATES, (2, 0, 1, 1))


def test_a_tensor_and_its_snapshots_are_scaled_together() -> None:
    """Parameters scaled one by one, or snapshot by snapshot, would lose what tells them apart."""
    assert torch.allclose(FITTED.mean, torch.tensor([2.5, 2.5, 20.0, 0.5]))
    assert torch.allclose(FITTED.scale, torch.tensor([STATES[:, :2].std(), STATES[:, :2].std(), 200**0.5, 0.0]))
    assert torch.allclose(FITTED.apply(STATES)[:, 0], (STATES[:, 0] - 2.5) / (STATES[:, :2].std() + EPSILON))
    assert torch.allclose(FITTED.invert(FITTED.apply(STATES)), STATES, atol=1e-4)


def test_parameters_that_never_move_stay_finite() -> None:
    """Layer norm weights before the first step are all one: their standard deviation is zero."""
    assert not FITTED.apply(STATES)[:, 3].any()
    assert (FITTED.invert(torch.full((1, 4), 7.0))[:, 3] == 0.5).all()
