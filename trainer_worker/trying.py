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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from trainer_worker.errors import CommandFailed

MODES: Final = ("without", "with")
MARKS: Final = (0.75, 1.0)  # parts of the run without nowcasts at whose losses the two are compared
WINDOWS: Final = 50  # a loss is the mean of one in so many of all that were told


@dataclass(frozen=True)
class Course:
    """The losses of one run, as told: after which steps, seconds since its start, and smoothed."""

    steps: list[int]
    seconds: list[float]
    losses: list[float]

    @classmethod
    def of(cls, told: Sequence[tuple[int, float, float]]) -> "Course":
        """Smooth what was told: the mean over the last `len(told) / WINDOWS` losses."""
        window = max(1, len(told) // WINDOWS)
        raw = [loss for _, _, loss in told]
        means = [sum(raw[max(0, end - window) : end]) / min(window, end) for end in range(1, len(raw) + 1)]
        return cls([step for step, _, _ in told], [seconds for _, seconds, _ in told], means)

    def first_at(self, loss: float) -> int | None:
        """Where the loss is reached for the first time, as an index."""
        return next((index for index, value in enumerate(self.losses) if value <= loss), None)


def run(script: Path, arguments: Sequence[str], *, seed: int) -> dict[str, Course]:
    """Run the script once in each mode, in processes of their own, with the same seed.

    Raises:
        CommandFailed: the script fails, or tells no losses.
    """
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for mode in MODES:
            log = Path(folder) / mode
            command = [sys.executable, "-m", "trainer_worker.trying", mode, str(log), str(seed), str(script), *arguments]
            done = subprocess.run(command, check=False, env={**os.environ, "PYTHONHASHSEED": "0"})  # noqa: S603 -- the user's own
            if done.returncode:
                raise CommandFailed(f"{script} ended with exit code {done.returncode} in the run {mode} nowcasts")
            told = [tuple(json.loads(line)) for line in log.read_text(encoding="utf-8").splitlines()]
            if len(told) < 2:
                raise CommandFailed(f"{script} told no losses: call `nowcast.observe(loss)` after each step, or use an adapter")
            found[mode] = Course.of(told)
    return found


def report(courses: dict[str, Course]) -> list[str]:
    """What the nowcasts saved, in sentences."""
    without, nowcast = courses["without"], courses["with"]
    lines = [f"training loss at the end: {without.losses[-1]:.4g} without, {nowcast.losses[-1]:.4g} with nowcasts"]
    for mark in MARKS:
        theirs = without.first_at(without.losses[max(0, int(mark * len(without.losses)) - 1)])
        assert theirs is not None
        lines.append(
            f"to the loss without nowcasts at {mark:.0%} of the run, {without.losses[theirs]:.4g}: "
            + _saved(without, nowcast, theirs)
        )
    window = max(1, len(without.losses) // WINDOWS)
    lines.append(f"losses are means over {window} told ones, of one seed: a few percent may be chance; try another --seed")
    return lines


def _saved(without: Course, nowcast: Course, theirs: int) -> str:
    mine = nowcast.first_at(without.losses[theirs])
    before = f"{without.steps[theirs]} steps, {without.seconds[theirs]:.3g} s"
    if mine is None:
        return f"{before} without; never with nowcasts"
    steps, seconds = nowcast.steps[mine], nowcast.seconds[mine]
    change = steps / max(1, without.steps[theirs]) - 1, seconds / max(1e-9, without.seconds[theirs]) - 1
    return f"{before} without; {steps} steps ({change[0]:+.0%}), {seconds:.3g} s ({change[1]:+.0%}) with nowcasts"


def play(mode: str, log: str, seed: str, script: str, *arguments: str) -> None:
    """Run the script as Python would, with a seed, and a `Nowcast` that writes down the losses it is told, a line each."""
    import random

    import numpy as np
    import torch

    from trainer_worker import nowcast as home

    told: list[tuple[int, float, Any]] = []  # losses stay where they are until the end: nothing waits for a device

    class Recorded(home.Nowcast):
        def __init__(self, *given: Any, **options: Any) -> None:
            super().__init__(*given, **({**options, "interval": sys.maxsize} if mode == "without" else options))

        def start(self) -> Self:
            self.started_s = time.perf_counter()
            return super().start()

        def observe(self, loss: Any) -> None:
            at = self.steps, time.perf_counter() - self.started_s
            told.append((*at, loss.detach() if isinstance(loss, torch.Tensor) else loss))
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
