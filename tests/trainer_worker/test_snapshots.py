"""Host copies of the weights."""

import pytest
import torch
from torch import nn

from trainer_worker.snapshots import NoRow, SnapshotBuffers
from trainer_worker.weights.flat import FlatParameters


def buffers_of(model: nn.Module, dtype: torch.dtype = torch.float32) -> SnapshotBuffers:
    return SnapshotBuffers(FlatParameters(model, [torch.optim.SGD(model.parameters())]), dtype=dtype, rows=2)


def test_rows_are_reused_and_never_while_in_use() -> None:
    """A row that is overwritten on its way to the server would arrive with valid checksums and the wrong values."""
    model = nn.Linear(2, 1)
    buffers = buffers_of(model)
    first = buffers.take(1, in_use=())
    kept = first.values.clone()
    nn.init.ones_(model.weight)
    second = buffers.take(2, in_use=[first])
    assert torch.equal(first.values, kept)
    with pytest.raises(NoRow):
        buffers.take(3, in_use=[first, second])
    third = buffers.take(3, in_use=[second])
    assert third.values.data_ptr() == first.values.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounded_snapshots_do_not_round_the_weights(dtype: torch.dtype) -> None:
    """Sending 16 bits must not cost a float32 run the lower half of its weights."""
    model = nn.Linear(64, 64)
    before = model.weight.detach().clone()
    snapshot = buffers_of(model, dtype).take(1, in_use=())
    assert snapshot.wait().dtype == dtype
    assert torch.equal(snapshot.wait()[:4096].view(64, 64), before.to(dtype))
    assert torch.equal(model.weight, before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_on_the_device_does_not_change_a_snapshot_under_way() -> None:
    """The copy to the host runs beside the training, which writes to the same parameters."""
    model = nn.Linear(4096, 4096, device="cuda")
    buffers = buffers_of(model, torch.bfloat16)
    for step in range(1, 9):
        expected = torch.cat([p.detach().reshape(-1) for p in model.parameters()]).bfloat16().cpu()
        snapshot = buffers.take(step, in_use=())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1.0)
        assert torch.equal(snapshot.wait(), expected)
        assert snapshot.values.is_pinned()
