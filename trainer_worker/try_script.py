"""Runs a user's script for `nowcast try`: with a seed, and a `Nowcast` that writes down the losses it is told.

python -m trainer_worker.try_script {with,without} LOG SEED SCRIPT [ARGS]
"""

import atexit
import json
import logging
import random
import runpy
import sys
import time
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from trainer_worker import nowcast as home

_told: list[tuple[int, float, Tensor | float]] = []
"""Steps, seconds since the start, and losses, which stay where they are until the end: nothing waits for a device."""


class Recorded(home.Nowcast):
    """A `Nowcast` that keeps what it is told; of a run without nowcasts the first interval does not end."""

    without = False
    _start_s = 0.0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **({**options, "interval": sys.maxsize} if self.without else options))

    def start(self) -> Self:
        self._start_s = time.perf_counter()
        return super().start()

    def observe(self, loss: Tensor | float) -> None:
        _told.append((self.steps, time.perf_counter() - self._start_s, loss.detach() if isinstance(loss, Tensor) else loss))
        super().observe(loss)


def write(log: Path) -> None:
    """Write everything that was told, a line each."""
    with log.open("w", encoding="utf-8") as file:
        for step, seconds, loss in _told:
            file.write(json.dumps([step, seconds, float(loss)]) + "\n")


def main(arguments: list[str]) -> None:
    """Run the script as Python would."""
    mode, log, seed, script, *rest = arguments
    patched: Any = home
    patched.Nowcast, Recorded.without = Recorded, mode == "without"
    if Recorded.without:
        logging.getLogger(home.__name__).setLevel(logging.ERROR)  # that no forecast was used is as it should be
    random.seed(int(seed))
    np.random.seed(int(seed))  # noqa: NPY002  (the script may draw from the global state)
    torch.manual_seed(int(seed))
    sys.argv = [script, *rest]
    sys.path[0] = str(Path(script).resolve().parent)
    atexit.register(write, Path(log))
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
