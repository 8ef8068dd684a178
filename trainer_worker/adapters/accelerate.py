"""Hugging Face's Accelerate: loops of one's own with `accelerator.prepare`."""

from collections.abc import Sequence
from typing import Any

from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer

from trainer_worker.nowcast import Nowcast


def nowcast(accelerator: Accelerator, model: nn.Module, optimizer: Optimizer | Sequence[Optimizer], **options: Any) -> Nowcast:
    """Make a `Nowcast` of what `accelerator.prepare` gave, whose state goes with `accelerator.save_state` and `load_state`.

    ```python
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    with nowcast(accelerator, model, optimizer, max_steps=10_000):
        for batch in loader: ...
    ```

    Model and optimizer may be prepared or not; `options` are arguments of `Nowcast`, as is what it raises.
    """
    made = Nowcast(accelerator.unwrap_model(model), optimizer, **options)
    accelerator.register_for_checkpointing(made)
    return made
