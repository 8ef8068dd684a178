"""The flat vector and the host copies."""

import pytest
import torch
from torch import nn

from trainer_worker.weights.flat import FlatParameters
from trainer_worker.weights.snapshots import SnapshotBuffers


def parameters(model: nn.Module, dtype: torch.dtype = torch.float32) -> FlatParameters:
    return FlatParameters(model, torch.optim.SGD(model.parameters(), lr=1.0), dtype=dtype)


def test_the_order_does_not_depend_on_the_memory_format() -> None:
    """The wiring counts in the tensor's own order; channels-last memory holds the same values in another."""
    model = nn.Conv2d(3, 4, 3)
    plain, last = torch.zeros(112), torch.zeros(112)
    parameters(model).copy_to(plain)
    model.to(memory_format=torch.channels_last)
    assert not model.weight.is_contiguous()
    parameters(model).copy_to(last)
    assert torch.equal(plain, last)
    parameters(model).load(torch.arange(112.0))
    assert torch.equal(model.weight.detach().reshape(-1), torch.arange(108.0))
    assert model.weight.is_contiguous(memory_format=torch.channels_last)


def test_what_has_been_frozen_since_does_not_move() -> None:
    """A layer frozen in the middle of a run is meant to stay as it is; a bound on what moves does not count it either."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight.requires_grad_(False)
    vector = FlatParameters(model, torch.optim.SGD(model.parameters(), lr=1.0), dtype=torch.float32)
    model[0].weight.requires_grad_(False)
    model[1].weight.requires_grad_(True)  # nothing that belongs to jumps knows of it
    before = [parameter.clone() for parameter in model.parameters()]
    vector.load(torch.ones(8))
    assert all(torch.equal(parameter, old) for parameter, old in zip(model.parameters(), before, strict=True))
    assert vector.distance(torch.zeros(8), torch.ones(8)) == 0
    model[0].weight.requires_grad_(True)
    vector.load(torch.ones(8))
    assert torch.equal(model[0].weight, torch.ones(2, 2))
    assert torch.equal(model[1].weight, before[1])


@pytest.mark.parametrize("thawed", [False, True])
def test_frozen_while_a_forecast_is_made_ready(*, thawed: bool) -> None:
    """The whole forecast, not its displacement, would be added to a layer that is thawed before the jump."""
    model = nn.Linear(2, 2, bias=False)
    vector = parameters(model)
    last = torch.empty(4)
    vector.copy_to(last)
    forecast = last + 1
    model.weight.requires_grad_(False)
    vector.displace(forecast, last=last, late=True)
    if thawed:
        model.weight.requires_grad_(True)
    vector.load(forecast, late=True)
    torch.testing.assert_close(model.weight.detach().flatten(), last + thawed)


def test_rows_are_reused_and_never_while_in_use() -> None:
    """A row that is overwritten on its way to the server would arrive with valid checksums and the wrong values."""
    model = nn.Linear(2, 1)
    buffers = SnapshotBuffers(parameters(model), dtype=torch.float32, rows=2)
    first = buffers.take(1, busy=set())
    kept = first.values.clone()
    nn.init.ones_(model.weight)
    second = buffers.take(2, busy={buffers.row_of(first)})
    assert torch.equal(first.values, kept)
    third = buffers.take(3, busy={buffers.row_of(second)})
    assert third.values.data_ptr() == first.values.data_ptr()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_on_the_device_does_not_change_a_snapshot_under_way() -> None:
    """The copy to the host runs beside the training, which writes to the same parameters."""
    model = nn.Linear(4096, 4096, device="cuda")
    buffers = SnapshotBuffers(parameters(model, torch.bfloat16), dtype=torch.bfloat16, rows=2)
    for step in range(1, 9):
        expected = torch.cat([p.detach().reshape(-1) for p in model.parameters()]).bfloat16().cpu()
        snapshot = buffers.take(step, busy=set())
        assert snapshot is not None
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1.0)
        assert torch.equal(snapshot.wait(), expected)
        assert snapshot.values.is_pinned()
