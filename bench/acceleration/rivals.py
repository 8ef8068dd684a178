"""What saves steps without a forecaster: the optimizers and wrappers that nowcasts have to beat."""

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class Wrapper(Protocol):
    """Acts on the weights around the steps of an optimizer."""

    def before_step(self, done: float) -> None:
        """Act before the gradient is taken; `done` is the share of the run so far."""

    def after_step(self) -> None:
        """Act after the optimizer's step."""


class EmaNesterov:
    """Takes each gradient where an average of the past steps points to (Yau et al. 2026, arXiv 2605.25395).

    With the base optimizer A: w' = A(w + beta m), then m' = gamma m + (1 - gamma) (w' - w). As in the paper beta is 0 at first and
    in the end, and otherwise follows the learning rate.

    Args:
        beta: how far to look ahead, in averages of the steps.
        gamma: decay of their average.
        start, end: shares of the run between which beta is not 0.
    """

    def __init__(
        self, optimizer: Optimizer, *, beta: float = 0.6, gamma: float = 0.99, start: float = 0.1, end: float = 0.6
    ) -> None:
        self._optimizer, self._beta, self._gamma, self._start, self._end = optimizer, beta, gamma, start, end
        self._weights = trained(optimizer)
        self._mean = [torch.zeros_like(weight, requires_grad=False) for weight in self._weights]
        self._before = self._mean
        self._rate = optimizer.param_groups[0]["lr"]

    @torch.no_grad()
    def before_step(self, done: float) -> None:
        self._before = [weight.detach().clone() for weight in self._weights]
        if self._start <= done < self._end:
            share = self._optimizer.param_groups[0]["lr"] / self._rate
            torch._foreach_add_(self._weights, self._mean, alpha=self._beta * share)

    @torch.no_grad()
    def after_step(self) -> None:
        moved = [weight - before for weight, before in zip(self._weights, self._before, strict=True)]
        torch._foreach_lerp_(self._mean, moved, 1 - self._gamma)


class Snoo:
    """Nesterov momentum on what each K steps have done (Kallusky et al. 2025, arXiv 2510.15830).

    With s the slow weights less the weights after K steps: b' = mu b + s, and both become w - eta (mu b' + s).
    """

    def __init__(self, optimizer: Optimizer, *, every: float = 50, mu: float = 0.6, eta: float = 1.0) -> None:
        self._every, self._mu, self._eta = int(every), mu, eta
        self._weights = trained(optimizer)
        self._slow = [weight.detach().clone() for weight in self._weights]
        self._momentum = [torch.zeros_like(weight) for weight in self._slow]
        self._steps = 0

    def before_step(self, done: float) -> None:
        """Nothing to do."""

    @torch.no_grad()
    def after_step(self) -> None:
        self._steps += 1
        if self._steps % self._every:
            return
        moved = [slow - weight for slow, weight in zip(self._slow, self._weights, strict=True)]
        torch._foreach_mul_(self._momentum, self._mu)
        torch._foreach_add_(self._momentum, moved)
        torch._foreach_add_(moved, self._momentum, alpha=self._mu)
        torch._foreach_add_(self._slow, moved, alpha=-self._eta)
        torch._foreach_copy_(self._weights, self._slow)


def divide(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """The parameters for Muon (matrices, but for embeddings and the last layer), and all others."""
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    outside = {weight for module in model.modules() if isinstance(module, nn.Embedding) for weight in module.parameters()}
    outside |= set(linear[-1].parameters()) if linear else set()
    matrices = [weight for weight in model.parameters() if weight.dim() == 2 and weight not in outside]
    return matrices, [weight for weight in model.parameters() if all(weight is not other for other in matrices)]


def ademamix(
    weights: Iterable[Tensor], *, lr: float, weight_decay: float, steps: int, alpha: float = 5.0, beta3: float = 0.999
) -> Optimizer:
    """AdamW with a second, slower momentum (Pagliardini et al. 2024, arXiv 2409.03137); alpha and beta3 rise over the whole run."""
    from pytorch_optimizer import AdEMAMix

    settings: dict[str, Any] = {"weight_decay": weight_decay, "weight_decouple": True, "t_alpha_beta3": steps}
    return AdEMAMix(weights, lr=lr, betas=(0.9, 0.999, beta3), alpha=alpha, **settings)


def trained(optimizer: Optimizer) -> list[Tensor]:
    """The parameters of an optimizer."""
    return [weight for group in optimizer.param_groups for weight in group["params"]]
