"""Small wirings, and checkpoints with random weights, for tests that need no published ones."""

from itertools import pairwise
from typing import Any

import torch
from torch import nn

from nowcast_server.nino.checkpoint import Checkpoint, ModelOptions, tensor_shapes
from protos.wiring import Wiring
from trainer_worker.wiring import wire


def mlp_wiring(*widths: int) -> Wiring:
    """A fully connected network with biases; `0.weight` (out, in), `0.bias` (out,), ..."""
    return wire(nn.Sequential(*(nn.Linear(inputs, outputs) for inputs, outputs in pairwise(widths))))


def random_states(wiring: Wiring, *, context: int = 5, seed: int = 0) -> torch.Tensor:
    """A smooth random walk of the parameters: (context, n)."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn(context, wiring.size, generator=generator)
    return steps[:1] + 0.1 * steps.cumsum(0)


def random_checkpoint(*, seed: int = 0, gain: float = 1.0, **options: Any) -> Checkpoint:
    """Weights of a size that keeps every part of the model at work."""
    generator = torch.Generator().manual_seed(seed)
    chosen = ModelOptions(**{"hidden": 16, **options})
    tensors = {
        name: gain * torch.randn(shape, generator=generator) / max(1, shape[-1] if len(shape) > 1 else 4) ** 0.5
        for name, shape in tensor_shapes(chosen).items()
    }
    return Checkpoint(chosen, tensors, "random")
