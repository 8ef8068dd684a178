"""Whether training goes along with pushes: what is told of it, and what follows."""

from unittest.mock import Mock

import pytest
import torch
from torch import nn

from protos.messages import MAX_LAYERS, JobSpec
from trainer_worker.coherence import LayerCoherence, layers_of
from trainer_worker.forecasts import Forecasts
from trainer_worker.push import Push
from trainer_worker.weights.flat import FlatParameters
from trainer_worker.wiring import describe


def test_layers_are_told_apart() -> None:
    """A layer that cannot be forecast would hide behind one that can; or what was never pushed would count as 0."""
    layers = LayerCoherence(["a.weight", "a.bias", "b.weight", "c.weight"])
    layers.add(torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [-1.0, 1.0, 1.0], [0.0, 0.0, 4.0]]))
    layers.add(torch.tensor([[0.0, 1.0, 1.0], [0.0, 1.0, 1.0], [-2.0, 2.0, 2.0], [0.0, 0.0, 4.0]]))
    assert layers.means() == pytest.approx({"a": 0.5, "b": -1.0})


@pytest.mark.parametrize(
    ("names", "layers"),
    [
        (["fc.weight", "fc.bias", "scale"], ["fc", "fc", "scale"]),
        ([f"blocks.{i}.{part}.weight" for i in range(40) for part in ("up", "down")], ["blocks.*.up", "blocks.*.down"] * 40),
        ([f"net.{chr(97 + i // 26)}{chr(97 + i % 26)}.norm.weight" for i in range(200)], ["net"] * 200),
        ([f"{'x' * 100}{i}" for i in range(3)], [f"{'x' * 79}{i}" for i in range(3)]),
    ],
    ids=["few", "repeated", "deep", "long"],
)
def test_layers_of_a_network(names: list[str], layers: list[str]) -> None:
    """A large network's page would be a list of hundreds of tensors, or its progress be refused."""
    assert layers_of(names) == layers


def test_there_are_never_more_layers_than_progress_may_have() -> None:
    """A network whose parameters have odd names would not be served at all."""
    assert len(set(layers_of([chr(0x4E00 + i) for i in range(500)]))) == MAX_LAYERS


def test_snapshots_that_a_push_is_compared_with_stay_as_they_are() -> None:
    """After a slow send the context begins anew: rows that the sending thread still reads would be written to."""
    model = nn.Linear(2, 1)
    flat, spec = FlatParameters(model, [torch.optim.SGD(model.parameters())]), JobSpec(wiring=describe(model).wiring, context=5)
    forecasts = Forecasts(flat, Mock(local=False), spec, push=Push(), timeout_s=1.0)
    for step in (10, 20):
        forecasts.take(step, Mock())
    compared = {snapshot.values.data_ptr() for snapshot in forecasts.sender.context}
    forecasts.sender.reset()
    forecasts.take(30, Mock())
    (newest,) = forecasts.sender.context
    assert newest.values.data_ptr() not in compared
