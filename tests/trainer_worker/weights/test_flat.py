"""The flat vector."""

import pytest
import torch
from torch import nn
from torch.optim import SGD

from trainer_worker import BadArgument
from trainer_worker.weights.flat import FlatParameters


def test_the_order_does_not_depend_on_the_memory_format() -> None:
    """The wiring counts in the tensor's own order; channels-last memory holds the same values in another."""
    model = nn.Conv2d(3, 4, 3)
    plain, last = torch.zeros(112), torch.zeros(112)
    FlatParameters(model, [SGD(model.parameters())]).copy_to(plain)
    model.to(memory_format=torch.channels_last)
    assert not model.weight.is_contiguous()
    FlatParameters(model, [SGD(model.parameters())]).copy_to(last)
    assert torch.equal(plain, last)


def test_only_what_is_trained_is_copied() -> None:
    """A fine-tuned adapter of a thousandth of the network would be sent with all of it."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3), nn.Linear(3, 1))
    model[0].requires_grad_(False)
    flat = FlatParameters(model, [SGD(model[:2].parameters()), SGD([model[2].bias])])
    expected = [("1.weight", 0, 6), ("1.bias", 6, 9), ("2.bias", 9, 10)]
    assert [(piece.name, piece.start, piece.stop) for piece in flat.pieces] == expected
    assert flat.covers(model, [SGD(model[:2].parameters()), SGD([model[2].bias])])
    assert not flat.covers(model, [SGD(model.parameters())])
    with pytest.raises(BadArgument, match="holds no trainable"):
        FlatParameters(model, [SGD(model[0].parameters())])
