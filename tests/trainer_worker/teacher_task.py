"""A task whose loss does not go to zero: noisy labels of a fixed random network."""

import torch
from torch import Tensor, nn
from torch.nn import functional


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


def student(seed: int = 0) -> nn.Module:
    """16-64-4."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))
