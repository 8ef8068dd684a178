"""`nowcast try`: a script of the user's, run without and with nowcasts, and what they saved by the losses it tells.

python -m trainer_worker.trying {with,without} LOG SEED SCRIPT [ARGS] is one of the two runs.
"""

import atexit
import json
import logging
import os
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from trainer_worker.errors import CommandFailed

MARKS: Final = (0.75, 1.0)  # parts of the run without nowcasts at whose losses the two are compared
WINDOWS: Final = 50  # a loss is the mean of one in so many of all that were told


class Told(NamedTuple):
    step: int  # after how many
    seconds: float  # since the run's start
    loss: float  # the mean of those told last, one in `WINDOWS` of all


def run(script: Path, arguments: Sequence[str], *, seed: int) -> list[list[Told]]:
    """Run the script without and with nowcasts, in processes of their own, with the same seed.
    Raises CommandFailed: the script fails, tells no losses, or resumes the first run in the second.
    """
    courses = []
    with tempfile.TemporaryDirectory() as folder:
        for mode in ("without", "with"):
            log = Path(folder) / mode
            command = [sys.executable, "-m", "trainer_worker.trying", mode, str(log), str(seed), str(script), *arguments]
            done = subprocess.run(command, check=False, env={**os.environ, "PYTHONHASHSEED": "0"})  # noqa: S603 -- the user's own
            if done.returncode:
                raise CommandFailed(f"{script} ended with exit code {done.returncode} in the run {mode} nowcasts")
            told = [Told(*json.loads(line)) for line in log.read_text(encoding="utf-8").splitlines()]
            if len(told) < 2:
                said = f"{script} told {'one loss only' if told else 'no losses'} in the run {mode} nowcasts"
                raise CommandFailed(f"{said}: call `nowcast.observe(loss)` after each step or use an adapter; resume no checkpoint")
            courses.append(told)
    first, second = (told[0].step for told in courses)
    if second >= 2 * max(1, first):  # not merely other: a scaler may have skipped a few steps
        begins = f"losses begin at step {first} without nowcasts, at step {second} with"
        raise CommandFailed(f"{begins}: {script} resumed a checkpoint of the first run; make both start from nothing")
    return [smooth(told) for told in courses]


def smooth(told: Sequence[Told]) -> list[Told]:
    """Means over one in `WINDOWS` of the losses told; of fewer at the start none, which could be low by chance."""
    window, losses = max(1, len(told) // WINDOWS), [each.loss for each in told]
    ends = enumerate(told[window - 1 :], window)
    return [last._replace(loss=sum(losses[end - window : end]) / window) for end, last in ends]


def report(without: Sequence[Told], nowcast: Sequence[Told]) -> list[str]:
    """What the nowcasts saved, in sentences."""
    lines = [f"training loss at the end: {without[-1].loss:.4g} without, {nowcast[-1].loss:.4g} with nowcasts"]
    for mark in MARKS:
        goal = without[max(0, int(mark * len(without)) - 1)].loss
        theirs, mine = (next((each for each in course if each.loss <= goal), None) for course in (without, nowcast))
        lines.append(f"to the loss without nowcasts at {mark:.0%} of the run, {goal:.4g}: {_saved(theirs, mine)}")
    lines.append(f"losses are means over 1/{WINDOWS} of the run, of one seed: a few percent may be chance; try another --seed")
    return lines


def _saved(theirs: Told | None, mine: Told | None) -> str:
    if theirs is None:
        return "the run without diverged"
    before = f"{theirs.step} steps, {theirs.seconds:.3g} s without"
    if mine is None:
        return f"{before}; never with nowcasts"
    steps, seconds = mine.step / max(1, theirs.step) - 1, mine.seconds / max(1e-9, theirs.seconds) - 1
    return f"{before}; {mine.step} steps ({steps:+.0%}), {mine.seconds:.3g} s ({seconds:+.0%}) with nowcasts"


def play(mode: str, log: str, seed: str, script: str, *arguments: str) -> None:
    """Run the script as Python would, with a seed, and a `Nowcast` that writes down the losses it is told, a line each."""
    import random

    import numpy as np
    import torch

    from trainer_worker import nowcast as home

    told: list[tuple[int, float, Any]] = []  # losses stay where they are until the end: nothing waits for a device

    class Recorded(home.Nowcast):
        def __init__(self, *given: Any, **options: Any) -> None:
            super().__init__(*given, **({**options, "interval": 2**40} if mode == "without" else options))

        def start(self) -> Self:
            self.started_s = time.perf_counter()
            return super().start()

        def observe(self, loss: Any) -> None:
            at = self.steps, time.perf_counter() - self.started_s
            told.append((*at, loss.detach().float().mean() if isinstance(loss, torch.Tensor) else loss))
            super().observe(loss)

    def write() -> None:
        lines = (json.dumps([step, seconds, float(loss)]) + "\n" for step, seconds, loss in told)
        Path(log).write_text("".join(lines), encoding="utf-8")

    patched: Any = home
    patched.Nowcast = Recorded
    if mode == "without":
        logging.getLogger(home.__name__).setLevel(logging.ERROR)  # that no forecast was used is as it should be
    random.seed(int(seed))
    np.random.seed(int(seed))  # noqa: NPY002  (the script may draw from the global state)
    torch.manual_seed(int(seed))
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).resolve().parent)
    atexit.register(write)
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    play(*sys.argv[1:])
