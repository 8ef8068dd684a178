"""Runs of the training loop in this process: no Ray, one worker, checkpoints in a folder."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from trainer_worker.training.loop import Checkpoint, train
from trainer_worker.training.records import Order, RunRecord


def train_in_process(order: Order, *, listen: Callable[[dict[str, Any]], None]) -> RunRecord:
    """Train one run here and now; the arguments are those of `train_on_ray`."""
    folder = order.config.output.folder / "checkpoints" / order.name
    if order.config.workers.threads:
        torch.set_num_threads(order.config.workers.threads)
    return train(order, FolderHarness(folder, listen))


class FolderHarness:
    """The only worker of a run, with its newest checkpoint in a folder."""

    rank = 0
    world = 1

    def __init__(self, folder: Path, listen: Callable[[dict[str, Any]], None]) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._path = folder / "checkpoint.pt"
        self._listen = listen

    def latest(self) -> Checkpoint | None:
        """See `Harness.latest`."""
        if not self._path.exists():
            return None
        return Checkpoint(**torch.load(self._path, weights_only=True, map_location="cpu"))

    def save(self, checkpoint: Checkpoint) -> None:
        """See `Harness.save`; the old checkpoint is replaced at once or not at all."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._path.with_suffix(f".{os.getpid()}")
        torch.save({"shared": checkpoint.shared, "own": checkpoint.own}, fresh)
        fresh.replace(self._path)

    def tell(self, news: dict[str, Any]) -> None:
        """See `Harness.tell`."""
        self._listen(news)
