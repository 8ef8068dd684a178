"""What a push adds to: weights of any dtype, and what optimizers keep of them."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainer_worker.weights.flat import FlatParameters
from trainer_worker.weights.pushed import PushedWeights, copies_of_weights


class Keeping(torch.optim.SGD):
    """Keeps what a test says in its state, for each parameter."""

    def __init__(self, model: nn.Module, **kept: Any) -> None:
        super().__init__(model.parameters(), lr=0.0)
        for parameter in model.parameters():
            for name, make in kept.items():
                self.state[parameter][name] = make(parameter.detach())


def pushed(model: nn.Module, optimizer: torch.optim.Optimizer) -> PushedWeights:
    return PushedWeights(FlatParameters(model, [optimizer]), [optimizer])


def flat(tensors: Any) -> Tensor:
    return torch.cat([each.detach().double().flatten() for each in tensors])


def layer(dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, 3, dtype=dtype)


DISPLACEMENT = torch.linspace(0.001, 0.003, 15)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_displacement_is_spread_over_the_steps_whatever_the_dtype(dtype: torch.dtype) -> None:
    """A step's share is less than half a digit of 16-bit weights: rounded away each time, nothing would ever be pushed."""
    model = layer(dtype)
    before, held = flat(model.parameters()), [(parameter.data_ptr(), parameter._version) for parameter in model.parameters()]
    pushing = pushed(model, Keeping(model))
    pushing.set(DISPLACEMENT, parts=100)
    for step in range(1, 101):
        pushing.add()
        rest = pushing.state_dict()["rest"].double() if dtype.itemsize < 4 else 0.0
        moved = flat(model.parameters()) - before + rest
        torch.testing.assert_close(moved, DISPLACEMENT.double() * step / 100, rtol=1e-3, atol=1e-6)
    pushing.clear()
    after = flat(model.parameters())
    pushing.add()
    assert torch.equal(flat(model.parameters()), after)
    assert all(parameter.dtype == dtype for parameter in model.parameters())
    for parameter, (pointer, version) in zip(model.parameters(), held, strict=True):
        assert parameter.data_ptr() == pointer  # optimizer, DDP and compiled graphs hold these tensors
        assert parameter._version > version  # autograd notices
    if dtype == torch.float64:  # by way of float32 the weights themselves would be rounded
        pushing.displace(torch.zeros(15))
        assert torch.equal(flat(model.parameters()), after)


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("master", lambda weights: weights.float().clone()),
        ("z", lambda weights: weights + 0.01 * torch.randn_like(weights)),  # of schedule-free
        ("slow_buffer", lambda weights: weights * 0.97),  # of Lookahead
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_an_optimizer_keeps_are_pushed_too(dtype: torch.dtype, name: str, kept: Any) -> None:
    """The optimizer would take the push back at its next step, or at its next synchronisation."""
    model = layer(dtype)
    optimizer = Keeping(model, exp_avg=torch.randn_like, exp_avg_sq=torch.zeros_like, **{name: kept})
    before = flat(optimizer.state[parameter][name] for parameter in model.parameters())
    moments = flat(optimizer.state[parameter]["exp_avg"] for parameter in model.parameters())
    pushing = pushed(model, optimizer)
    pushing.set(50 * DISPLACEMENT, parts=10)
    for _ in range(10):
        pushing.add()
    moved = flat(optimizer.state[parameter][name] for parameter in model.parameters()) - before
    torch.testing.assert_close(moved, 50 * DISPLACEMENT.double(), rtol=0.05, atol=4e-3 if dtype == torch.bfloat16 else 1e-6)
    assert torch.equal(flat(optimizer.state[parameter]["exp_avg"] for parameter in model.parameters()), moments)


@pytest.mark.parametrize("place", ["groups", "list", "dict"])
def test_master_weights_beside_the_state_are_pushed_too(place: str) -> None:
    """Apex keeps them in groups of their own, and writes them over the weights at each step: every push would be lost."""
    model = layer(torch.bfloat16)
    optimizer = Keeping(model)
    masters = [parameter.detach().float() for parameter in model.parameters()]
    optimizer.kept = {  # type: ignore[attr-defined]
        "groups": [{"params": masters}],
        "list": masters,
        "dict": dict(zip(model.parameters(), masters, strict=True)),
    }[place]
    before = flat(masters)
    pushed(model, optimizer).displace(DISPLACEMENT)
    torch.testing.assert_close(flat(masters) - before, DISPLACEMENT.double(), rtol=1e-3, atol=1e-6)


def test_what_is_no_copy_of_the_weights_is_left_alone() -> None:
    """Moments that are pushed make the optimizer go somewhere else; memory that is the weights' own would be pushed twice."""
    model = layer()
    optimizer = Keeping(
        model,
        exp_avg=lambda weights: 1e-4 * weights,
        previous_gradient=torch.randn_like,
        step=lambda _: torch.tensor(3.0),
        rows=lambda weights: weights.flatten()[:2].clone(),
        same=lambda weights: weights,
        near=lambda weights: 1.1 * weights,
    )
    assert copies_of_weights(list(model.parameters()), [optimizer]) == ["near"]
    before = flat(model.parameters())
    pushed(model, optimizer).displace(DISPLACEMENT)
    torch.testing.assert_close(flat(model.parameters()) - before, DISPLACEMENT.double(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_state_goes_on_where_it_was(dtype: torch.dtype) -> None:
    """Also if the optimizer's own copies are loaded after it."""

    def started() -> tuple[nn.Module, Keeping, PushedWeights]:
        model = layer(dtype)
        return model, (optimizer := Keeping(model)), pushed(model, optimizer)

    def keep(optimizer: Keeping, model: nn.Module) -> None:
        for parameter in model.parameters():
            optimizer.state[parameter]["master"] = parameter.detach().to(torch.promote_types(dtype, torch.float32), copy=True)

    model, optimizer, pushing = started()
    keep(optimizer, model)
    other, other_optimizer, resumed = started()
    pushing.set(DISPLACEMENT, parts=7)
    for _ in range(3):
        pushing.add()
    resumed.load_state_dict(pushing.state_dict())
    other.load_state_dict(model.state_dict())
    other_optimizer.load_state_dict(optimizer.state_dict())
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        other_optimizer.state[theirs]["master"] = optimizer.state[mine]["master"].clone()
    for _ in range(4):
        pushing.add()
        resumed.add()
    assert torch.equal(flat(model.parameters()), flat(other.parameters()))
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(optimizer.state[mine]["master"], other_optimizer.state[theirs]["master"])
