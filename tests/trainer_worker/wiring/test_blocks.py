"""Blocks hold exactly the weights they are made from, each on its edge."""

import numpy as np
import torch
from graphs import expand
from hypothesis import given, settings
from hypothesis import strategies as st

from protos.wiring import Parameter, Wiring
from trainer_worker.wiring.blocks import Weights, split

NEURONS = 12


@st.composite
def weights(draw: st.DrawFn) -> Weights:
    """A tensor with its axes in any order and neurons any way round: ranges, shuffled, repeated, joint over axes."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    order = draw(st.permutations(range(len(sizes))))
    strides, step = [0] * len(sizes), 1
    for axis in order:
        strides[axis] = step
        step *= sizes[axis]
    ends = []
    for _ in range(2):
        shape = [size if draw(st.booleans()) else 1 for size in sizes]
        count = int(np.prod(shape))
        start = draw(st.integers(0, 4))
        labels = draw(
            st.one_of(st.just(range(start, start + count)), st.lists(st.integers(0, NEURONS - 1), min_size=count, max_size=count))
        )
        ends.append(torch.tensor([label % NEURONS for label in labels]).reshape(shape))
    kind = torch.where(ends[1] % 2 == 0, 1, 3) if draw(st.booleans()) else torch.ones_like(ends[1])
    return Weights(tuple(sizes), tuple(strides), 0, ends[0], ends[1], kind)


@given(weights())
@settings(max_examples=300, deadline=None)
def test_every_weight_on_its_edge(held: Weights) -> None:
    """A weight would be lost, doubled or put between the wrong neurons."""
    size = int(np.prod(held.sizes))
    graph = expand(Wiring((Parameter("w", (size,)),), NEURONS, tuple(part for block in held.blocks(0) for part in split(block))))
    assert (graph.param_edge >= 0).all()
    at = torch.zeros(held.sizes, dtype=torch.int64)
    for axis, stride in enumerate(held.strides):
        at += (torch.arange(held.sizes[axis]) * stride).view([-1 if index == axis else 1 for index in range(len(held.sizes))])
    edges = graph.param_edge[at.numpy()]
    assert np.array_equal(graph.edge_index[0][edges], held.source.expand(held.sizes).numpy())
    assert np.array_equal(graph.edge_index[1][edges], held.target.expand(held.sizes).numpy())
    assert np.array_equal(graph.edge_type[edges], held.kind.expand(held.sizes).numpy())
