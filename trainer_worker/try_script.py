"""Runs a user's script for `nowcast try`: with a seed, and a `Nowcast` that writes down the losses it is told.

python -m trainer_worker.try_script {with,without} LOG SEED SCRIPT [ARGS]
"""

import atexit
import json
import random
import runpy
import sys
import time
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from trainer_worker import nowcast as home

_told: list[tuple[int, float, Tensor | float]] = []
"""Steps, seconds since the start, and losses, which stay where they are until the end: nothing waits for a device."""


class Recorded(home.Nowcast):
    """A `Nowcast` that keeps what it is told."""

    _start_s = 0.0

    def start(self) -> Self:
        self._start_s = time.perf_counter()
        return super().start()

    def observe(self, loss: Tensor | float) -> None:
        _told.append((self.steps, time.perf_counter() - self._start_s, loss.detach() if isinstance(loss, Tensor) else loss))
        super().observe(loss)


class Without(Recorded):
    """Counts steps, and does nothing else."""

    def step(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._boundaries.step += 1

    def _after_step(self, optimizer: Optimizer) -> None:
        skipped = getattr(optimizer, "found_inf", None)
        self._boundaries.step += int(skipped is None or not float(skipped))


def write(log: Path) -> None:
    """Write everything that was told, a line each."""
    with log.open("w", encoding="utf-8") as file:
        for step, seconds, loss in _told:
            file.write(json.dumps([step, seconds, float(loss)]) + "\n")


def main(arguments: list[str]) -> None:
    """Run the script as Python would."""
    mode, log, seed, script, *rest = arguments
    patched: Any = home
    patched.Nowcast = Recorded if mode == "with" else Without
    random.seed(int(seed))
    np.random.seed(int(seed))  # noqa: NPY002  (the script may draw from the global state)
    torch.manual_seed(int(seed))
    sys.argv = [script, *rest]
    sys.path[0] = str(Path(script).resolve().parent)
    atexit.register(write, Path(log))
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
