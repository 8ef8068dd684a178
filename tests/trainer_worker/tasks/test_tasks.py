"""Tasks on pictures: sizes, splits, batches, and how they are judged."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from trainer_worker.tasks.task import Split, Task, batch_indices, convnet, evaluate


@pytest.mark.parametrize(("width", "parameters"), [(16, 14_378), (32, 56_394)])
def test_the_convnets_are_the_papers(width: int, parameters: int) -> None:
    """Another size would make every figure of the paper incomparable."""
    model = convnet(width)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert model[:2](torch.zeros(1, 1, 28, 28)).shape == (1, width, 13, 13)
    assert model(torch.zeros(3, 1, 28, 28)).shape == (3, 10)


def test_the_last_twelfth_is_held_out(fashion: Task) -> None:
    """Validation examples must never be trained on, and the split must be the paper's."""
    assert (len(fashion.train), len(fashion.validation), len(fashion.test)) == (55_000, 5_000, 10_000)
    held_out, _ = fashion.validation.take(torch.arange(2))
    assert held_out.shape == (2, 1, 28, 28)
    pictures, _ = fashion.train.take(torch.arange(55_000))
    assert abs(pictures.mean() - (0.2860 - 0.1307) / 0.3081) < 0.01
    assert held_out.flatten(1).tolist() not in pictures[-2:].flatten(1).tolist()
    assert torch.bincount(fashion.test.take(torch.arange(10_000))[1]).tolist() == [1000] * 10


class Lookup(nn.Module):
    """Answers with the logits it was given as input, in training mode or not."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        assert not self.training
        return inputs


def test_evaluation_is_the_mean_over_the_split_whatever_the_workers() -> None:
    """Last batches are smaller and shares uneven: a mean of means would be wrong, and depend on the number of workers."""
    torch.manual_seed(1)
    split, model = Split(torch.randn(103, 7), torch.randint(7, (103,))), Lookup()
    alone = evaluate(model, split, batch_size=10)
    assert model.training  # left as it was
    shares = torch.stack([evaluate(Lookup(), split, batch_size=10, rank=rank, world=3) for rank in range(3)])
    torch.testing.assert_close(shares.sum(0), alone, rtol=1e-12, atol=0)
    loss = functional.cross_entropy(split.inputs.double(), split.targets)
    correct = (split.inputs.argmax(1) == split.targets).sum()
    torch.testing.assert_close(alone / 103, torch.stack([loss, correct / 103, torch.ones(())]).double(), rtol=1e-6, atol=0)


@given(
    examples=st.integers(1, 60),
    world=st.integers(1, 4),
    each=st.integers(1, 12),
    seed=st.integers(0, 2**32 - 1),
    step=st.integers(0, 50),
)
def test_workers_share_out_the_batch_of_one(examples: int, world: int, each: int, seed: int, step: int) -> None:
    """Were it otherwise, two workers would train on other data than one, and arms could not be compared."""
    whole = batch_indices(examples, batch_size=world * each, seed=seed, step=step)
    shares = [
        batch_indices(examples, batch_size=world * each, seed=seed, step=step, rank=rank, world=world) for rank in range(world)
    ]
    assert torch.stack(shares, dim=1).flatten().tolist() == whole.tolist()


@given(examples=st.integers(1, 60), batch_size=st.integers(1, 80), seed=st.integers(0, 2**32 - 1))
def test_every_epoch_sees_every_example_once(examples: int, batch_size: int, seed: int) -> None:
    """No example is dropped where an epoch ends inside a batch, and none comes twice."""
    steps = range(3 * examples // batch_size + 1)
    stream = torch.cat([batch_indices(examples, batch_size=batch_size, seed=seed, step=step) for step in steps])
    for epoch in range(len(stream) // examples):
        assert sorted(stream[epoch * examples : (epoch + 1) * examples].tolist()) == list(range(examples))


def test_batches_are_the_same_on_every_machine() -> None:
    """A run resumed elsewhere, or a figure reproduced next year, depends on these very numbers."""
    assert batch_indices(55_000, batch_size=4, seed=1000, step=0).tolist() == [6795, 27775, 5504, 26273]
    assert batch_indices(55_000, batch_size=4, seed=1000, step=13_750).tolist() == [5118, 53391, 13764, 43889]  # the next epoch
    assert batch_indices(55_000, batch_size=4, seed=1001, step=0).tolist() != [6795, 27775, 5504, 26273]
