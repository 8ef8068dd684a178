"""Batches: which examples, in which order, on which worker."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer_worker.tasks.batches import batch_indices


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
    assert batch_indices(55_000, batch_size=4, seed=1000, step=13_750).tolist() == [5118, 53391, 13764, 43889]


def test_seeds_and_epochs_differ() -> None:
    """The same order every epoch, or for every seed, would be no randomness at all."""
    first = batch_indices(1000, batch_size=1000, seed=1, step=0)
    assert first.tolist() != batch_indices(1000, batch_size=1000, seed=1, step=1).tolist()
    assert first.tolist() != batch_indices(1000, batch_size=1000, seed=2, step=0).tolist()


def test_an_uneven_split_is_refused() -> None:
    """Workers with batches of different size would weigh examples differently."""
    with pytest.raises(ValueError, match="does not split evenly over 3 workers"):
        batch_indices(100, batch_size=8, seed=0, step=0, world=3)
