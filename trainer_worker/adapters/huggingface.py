"""Hugging Face's `Trainer`, and those built on it (TRL, sentence-transformers)."""

import logging
from pathlib import Path
from typing import Any, Final

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trainer_worker.nowcast import Nowcast

log = logging.getLogger(__name__)

FILE: Final = "nowcast.pt"  # the state, in a checkpoint's folder


class NowcastCallback(TrainerCallback):
    """Nowcasts for a `Trainer`; saved with its checkpoints, and resumed with them.

    ```python
    trainer = Trainer(model, arguments, train_dataset=data, callbacks=[NowcastCallback()])
    trainer.train()
    ```

    Args:
        options: arguments of `Nowcast`; `max_steps` comes from the Trainer.
    """

    def __init__(self, **options: Any) -> None:
        self._options = options
        self.nowcast: Nowcast | None = None
        """Of the present or the last run."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Start, where the Trainer's checkpoint stopped if it resumes one."""
        steps = state.max_steps if state.max_steps > 0 else None
        self.nowcast = Nowcast(kwargs["model"], kwargs["optimizer"], **{"max_steps": steps, **self._options})
        if state.global_step:
            self._resume(args, state)
        self.nowcast.start()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Tell the loss."""
        logs = kwargs.get("logs") or {}
        if self.nowcast is not None and "loss" in logs:
            self.nowcast.observe(float(logs["loss"]))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Put the state beside the Trainer's."""
        folder = _folder(args, state)
        saved = self.nowcast.state_dict() if self.nowcast is not None else None  # which all ranks take together
        if saved is not None and args.should_save and folder.is_dir():
            torch.save(saved, folder / FILE)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop."""
        if self.nowcast is not None:
            self.nowcast.stop()

    def _resume(self, args: TrainingArguments, state: TrainerState) -> None:
        """Load the state of the checkpoint that the Trainer has loaded; without one, a new context begins."""
        assert self.nowcast is not None
        named = Path(str(args.resume_from_checkpoint))  # it may also be None, True, or "True"
        folder = named if named.is_dir() else _folder(args, state)
        if (folder / FILE).is_file():
            self.nowcast.load_state_dict(torch.load(folder / FILE, map_location="cpu", weights_only=True))
        else:
            wanted = "if it lies elsewhere, name its folder in TrainingArguments(resume_from_checkpoint=...) as well"
            log.warning("%s not found: nowcasts start over at step %d; %s", folder / FILE, state.global_step, wanted)
            self.nowcast.begin_at(state.global_step)


def _folder(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"
