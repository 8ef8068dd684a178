"""Lightning's `Trainer`. With Fabric, use `Nowcast` itself, and give it to `fabric.save` and `fabric.load`."""

import math
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from trainer_worker.nowcast import Nowcast


class NowcastCallback(Callback):
    """Nowcasts for a `Trainer`; saved with its checkpoints, and resumed with them.

    ```python
    trainer = Trainer(max_epochs=10, callbacks=[NowcastCallback()])
    ```

    Args:
        options: arguments of `Nowcast`; `max_steps` comes from the Trainer.
    """

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._state: Mapping[str, Any] | None = None
        self.nowcast: Nowcast | None = None
        """Of the present or the last run."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start, where the Trainer's checkpoint stopped if it resumes one."""
        most = trainer.max_steps / len(trainer.optimizers)  # which counts the steps of all; -1 for no limit
        steps = min(trainer.estimated_stepping_batches, most if most > 0 else math.inf)
        known = int(steps) if math.isfinite(steps) and steps > 0 else None
        self.nowcast = Nowcast(pl_module, trainer.optimizers, **{"max_steps": known, **self._options})
        if self._state is not None:
            self.nowcast.load_state_dict(self._state)
            self._state = None
        else:  # it may go on without one
            self.nowcast.begin_at(trainer.global_step // len(trainer.optimizers))
        self.nowcast.start()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Tell the loss."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if self.nowcast is not None and isinstance(loss, Tensor):
            self.nowcast.observe(loss * trainer.accumulate_grad_batches)  # Lightning has divided it by that

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop."""
        self.teardown(trainer, pl_module, type(exception).__name__)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stop."""
        if self.nowcast is not None:
            self.nowcast.stop()

    def state_dict(self) -> dict[str, Any]:
        """What the Trainer's checkpoints hold."""
        return self.nowcast.state_dict() if self.nowcast is not None else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep it for the start, which comes later."""
        self._state = state_dict or None
