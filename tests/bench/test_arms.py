"""The benchmark's arms and data: a name that means another thing than it says would make every table wrong."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from arms import Arm
from benchmark_data import animals, photographs, wikipedia
from rivals import EmaNesterov, Snoo, divide
from torch import nn

from trainer_worker.tasks.data import DataMissing


def test_settings_and_extras_are_read() -> None:
    """Runs are stored under an arm's name, so one name must be one thing."""
    arm = Arm.read("runs/my.safetensors:gain=0.5+cosine+ademamix:alpha=3")
    assert arm.label == "my:gain=0.5+ademamix:alpha=3+cosine"
    assert (arm.forecaster, arm.base.settings) == ("runs/my.safetensors", {"gain": 0.5})
    assert arm.schedule(0.5) == pytest.approx(0.5)


@pytest.mark.parametrize("name", ["nino+nonsense", "adam+jump"])
def test_an_unknown_extra_is_refused(name: str) -> None:
    """A misspelt extra would run as if it were not there."""
    with pytest.raises(ValueError, match="is no extra"):
        Arm.read(name)


def test_ema_nesterov_takes_gradients_ahead() -> None:
    """The gradient has to be taken at w + beta m, and m has to follow the whole move from w."""
    weight = nn.Parameter(torch.tensor([1.0]))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    rival = EmaNesterov(optimizer, beta=0.5, gamma=0.9, start=0.0, end=1.0)
    seen = []
    for _ in range(2):
        rival.before_step(0.0)
        seen.append(float(weight.detach()))
        weight.grad = torch.ones(1)
        optimizer.step()
        rival.after_step()
    # m = 0.1 * -0.1 after the first step; the second begins from 0.9 + 0.5 m
    assert seen == pytest.approx([1.0, 0.895])
    rival.before_step(1.0)
    assert float(weight.detach()) == pytest.approx(0.795)  # the end has come: no look ahead


def test_snoo_is_nesterov_on_what_k_steps_did() -> None:
    """With K = 1 over SGD it is SGD with Nesterov momentum, as torch has it."""
    weights = [nn.Parameter(torch.tensor([1.0])) for _ in range(2)]
    plain = torch.optim.SGD([weights[0]], lr=0.1)
    rival = Snoo(plain, every=1, mu=0.6, eta=1.0)
    nesterov = torch.optim.SGD([weights[1]], lr=0.1, momentum=0.6, nesterov=True)
    for _ in range(4):
        for weight, optimizer in zip(weights, (plain, nesterov), strict=True):
            weight.grad = 3 * weight.detach()
            optimizer.step()
        rival.after_step()
    torch.testing.assert_close(weights[0], weights[1])


def test_muon_gets_hidden_matrices_alone() -> None:
    """Embeddings and the last layer train badly under Muon."""
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 6), nn.Linear(6, 3))
    matrices, others = divide(model)
    assert [tuple(weight.shape) for weight in matrices] == [(6, 4)]
    assert len(others) == 4


@pytest.mark.parametrize(
    ("name", "kinds"), [("adam", ["AdamW"]), ("nino+muon", ["Muon", "AdamW"]), ("ademamix:alpha=2", ["AdEMAMix"])]
)
def test_an_arm_has_its_optimizer(name: str, kinds: list[str]) -> None:
    """A rival would be Adam under another name."""
    if "AdEMAMix" in kinds:
        pytest.importorskip("pytorch_optimizer")
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3))
    step: Callable[..., list[torch.optim.Optimizer]] = Arm.read(name).optimizers
    assert [type(each).__name__ for each in step(model, lr=1e-3, weight_decay=0.0, steps=10)] == kinds


def test_animals_articles_and_photographs() -> None:
    """Duplicates would straddle the splits, or markup be modelled instead of prose."""
    try:
        (images, labels), articles, sights = animals(), wikipedia(), photographs()
    except DataMissing as missing:
        pytest.skip(str(missing).splitlines()[0])
    assert images.shape == (9716, 28, 28)
    assert len(np.unique(images, axis=0)) == 9716
    assert np.bincount(labels).min() > 800
    assert 2_500_000 < len(articles) < 3_500_000
    assert articles.count("[[") < 100
    assert all(sight.shape[2] == 3 and sight.max() <= 1 for sight in sights)
