"""A task whose loss does not go to zero: noisy labels of a fixed random network."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer_worker import Nowcast


def batch(index: int, size: int = 64) -> tuple[Tensor, Tensor]:
    """Batch `index`, the same in every run."""
    teacher = torch.Generator().manual_seed(100)
    first, second = torch.randn(16, 32, generator=teacher), torch.randn(32, 4, generator=teacher)
    generator = torch.Generator().manual_seed(index)
    inputs = torch.randn(size, 16, generator=generator)
    noise = 0.5 * torch.randn(size, 4, generator=generator)
    return inputs, ((inputs @ first).tanh() @ second + noise).argmax(1)


VALIDATION = batch(10**6 + 1, 4000)


def loss(model: nn.Module, examples: tuple[Tensor, Tensor]) -> Tensor:
    return functional.cross_entropy(model(examples[0]), examples[1])


def train(
    steps: int,
    *,
    lr: float,
    options: dict[str, Any] | None,
    judged: range,
    after_step: Callable[[int, Nowcast], None] = lambda *_: None,
) -> tuple[list[float], dict[str, Any]]:
    """Validation losses after the steps `judged` of a run with nowcasts of these options, None for none; and its summary."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    nowcast = Nowcast(model, optimizer, max_steps=steps, **options) if options is not None else None
    losses = []
    with nowcast or nullcontext():
        for index in range(steps):
            optimizer.zero_grad()
            loss(model, batch(index)).backward()
            optimizer.step()
            if nowcast is not None:
                after_step(index, nowcast)
            if index in judged:
                losses.append(float(loss(model, VALIDATION).detach()))
    return losses, nowcast.summary() if nowcast is not None else {}
