"""A stack: several networks of one design trained at once, each in a lane with weights, data and optimiser settings of its own."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call, vmap
from torch.nn import functional

from trainer_worker.metatrain.feeds import Feed
from trainer_worker.metatrain.networks import Design


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """How one network of a stack is trained: AdamW at a constant rate after a linear warm-up.

    Args:
        lr, weight_decay, beta1, beta2: of AdamW.
        warmup: steps.
        seed: of the initial weights.
    """

    lr: float
    weight_decay: float
    beta1: float
    beta2: float
    warmup: int
    seed: int


@dataclass(frozen=True, slots=True)
class Snapshots:
    """The weights of all lanes after `step` steps.

    Args:
        step: steps taken.
        states: (lanes, n) float32.
        losses: (lanes,) training loss averaged since the snapshot before.
        segment: how many times the weights have jumped.
    """

    step: int
    states: Tensor
    losses: Tensor
    segment: int = 0


def train(
    design: Design,
    lanes: tuple[Lane, ...],
    feed: Feed,
    *,
    batch_size: int,
    steps: int,
    every: int,
    seed: int,
    leap: Callable[[Tensor], Tensor | None] | None = None,
) -> Iterator[Snapshots]:
    """Train all lanes, yielding their weights at the start and every `every` steps.

    After each snapshot but the first, `leap` is asked where to go on from: other weights, (lanes, n) like those it is given,
    or None.
    """
    generator = torch.Generator().manual_seed(seed)
    states = initial_states(design, lanes)
    optimizer = LaneAdam(lanes, states.shape[1])
    losses = stacked_losses(design, states)
    total, segment = torch.zeros(len(lanes)), 0
    yield Snapshots(0, states.clone(), torch.full((len(lanes),), torch.nan))
    for step in range(1, steps + 1):
        loss, gradient = losses(*feed.take(generator, batch_size=batch_size))
        optimizer.step(states, gradient)
        total += loss
        if step % every == 0:
            yield Snapshots(step, states.clone(), total / every, segment)
            total.zero_()
            target = leap(states) if leap is not None else None
            if target is not None:
                states.copy_(target)
                segment += 1


def initial_states(design: Design, lanes: tuple[Lane, ...]) -> Tensor:
    """Freshly initialised weights: (lanes, n)."""
    rows = []
    for lane in lanes:
        with torch.random.fork_rng():
            torch.manual_seed(lane.seed)
            network = design.build()
        rows.append(torch.cat([parameter.detach().flatten() for parameter in network.parameters()]))
    return torch.stack(rows)


class stacked_losses:  # noqa: N801  # used as a function; it only remembers the views
    """Loss and gradient of every lane at the weights `states` (lanes, n), which may be changed in place between calls."""

    def __init__(self, design: Design, states: Tensor) -> None:
        self._network = design.build()
        self._leaves: dict[str, Tensor] = {}
        start = 0
        for name, parameter in self._network.named_parameters():
            view = torch.unflatten(states[:, start : start + parameter.numel()], 1, parameter.shape)
            self._leaves[name] = view.detach().requires_grad_()
            start += parameter.numel()

    def __call__(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Losses (lanes,) and gradients (lanes, n) for a batch of each lane."""
        losses = vmap(self._loss)(self._leaves, inputs, targets)
        gradients = torch.autograd.grad(losses.sum(), list(self._leaves.values()))
        return losses.detach(), torch.cat([gradient.flatten(1) for gradient in gradients], dim=1)

    def _loss(self, weights: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        return loss_of(functional_call(self._network, weights, (inputs,)), targets)


def loss_of(outputs: Tensor, targets: Tensor) -> Tensor:
    """What a network's outputs for a batch cost: squares for values, cross-entropy for classes and tokens."""
    if targets.is_floating_point():
        return functional.mse_loss(outputs[..., 0], targets)
    return functional.cross_entropy(outputs.flatten(0, -2), targets.flatten())


class LaneAdam:
    """AdamW on the stacked weights of all lanes: a handful of operations on one matrix, whatever the number of tensors."""

    def __init__(self, lanes: tuple[Lane, ...], size: int) -> None:
        def column(name: str) -> Tensor:
            return torch.tensor([[float(getattr(lane, name))] for lane in lanes])

        self._lr, self._weight_decay, self._warmup = column("lr"), column("weight_decay"), column("warmup")
        self._beta1, self._beta2 = column("beta1"), column("beta2")
        self._mean, self._square = torch.zeros(2, len(lanes), size)
        self._steps = 0

    def step(self, states: Tensor, gradient: Tensor) -> None:
        """Update `states` (lanes, n) in place."""
        self._steps += 1
        lr = self._lr * ((self._steps / self._warmup.clamp(min=1.0)).clamp(max=1.0))
        self._mean.lerp_(gradient, 1 - self._beta1)
        self._square.lerp_(gradient.square(), 1 - self._beta2)
        unbiased = (self._square / (1 - self._beta2**self._steps)).sqrt_().add_(1e-8)
        states.mul_(1 - lr * self._weight_decay)
        states.sub_(self._mean / unbiased * (lr / (1 - self._beta1**self._steps)))
