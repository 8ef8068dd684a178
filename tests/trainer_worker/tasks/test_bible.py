"""The character language model: its windows of text and its network."""

import pytest
import torch
from torch.nn import functional

from trainer_worker.tasks import load_task
from trainer_worker.tasks.bible import GPT, WindowSplit, king_james
from trainer_worker.tasks.data import DataMissing
from trainer_worker.tasks.task import Task


@pytest.fixture(scope="module")
def kjv() -> Task:
    """The task with the real text."""
    try:
        return load_task("kjv-3x64")
    except DataMissing as missing:
        pytest.skip(str(missing))


def tiny() -> GPT:
    torch.manual_seed(0)
    return GPT(vocabulary=11, context=8, layers=2, width=16, heads=4)


def test_targets_are_the_next_characters() -> None:
    """A shift by none would be trivial, by two would be another task."""
    split = WindowSplit(torch.arange(100), context=5, stride=10, count=9)
    inputs, targets = split.take(torch.tensor([0, 8]))
    assert inputs.tolist() == [[0, 1, 2, 3, 4], [80, 81, 82, 83, 84]]
    assert torch.equal(targets, inputs + 1)
    assert len(split.first(4)) == 4


def test_splits_are_disjoint_pieces_of_the_text(kjv: Task) -> None:
    """Every window, the last ones included, must lie inside its own part."""
    for split, most in ((kjv.train, 4_500_000), (kjv.validation, 250_000), (kjv.test, 250_000)):
        inputs, targets = split.take(torch.tensor([0, len(split) - 1]))
        assert inputs.shape == targets.shape == (2, 64)
        assert isinstance(split, WindowSplit)
        assert len(split.tokens) < most
    assert (len(kjv.validation), len(kjv.test)) == (1000, 1000)
    text = king_james()
    assert text.startswith("In the beginning God created")
    assert text.endswith("Amen.\n")


def test_the_network_is_the_one_of_our_measurements(kjv: Task) -> None:
    """design/jumps.md has figures for GPT-2 3 x 64 with 158,528 parameters on this text."""
    model = kjv.build()
    assert sum(parameter.numel() for parameter in model.parameters()) == 158_528
    inputs, targets = kjv.validation.take(torch.arange(4))
    loss = kjv.loss(model(inputs), targets)
    assert loss.item() == pytest.approx(torch.log(torch.tensor(68.0)).item(), abs=0.1)  # knows nothing yet of 68 characters


def test_no_position_sees_what_follows() -> None:
    """Without the causal mask the network would read its targets off its inputs."""
    model = tiny()
    tokens = torch.randint(11, (1, 8))
    changed = tokens.clone()
    changed[0, 5] = (changed[0, 5] + 1) % 11
    difference = (model(tokens) - model(changed)).abs().amax(-1)[0]
    assert torch.equal(difference[:5], torch.zeros(5))
    assert (difference[5:] > 1e-6).all()


def test_heads_do_not_mix() -> None:
    """Attention of each head against the textbook formula, one position at a time."""
    attention = tiny().h[0].attn
    hidden = torch.randn(1, 6, 16)
    query, key, value = attention.c_attn(hidden)[0].split(16, dim=-1)
    rows = []
    for position in range(6):
        heads = []
        for head in range(4):
            part = slice(4 * head, 4 * head + 4)
            weights = functional.softmax(key[: position + 1, part] @ query[position, part] / 2, dim=0)
            heads.append(weights @ value[: position + 1, part])
        rows.append(torch.cat(heads))
    torch.testing.assert_close(attention(hidden)[0], attention.c_proj(torch.stack(rows)))
