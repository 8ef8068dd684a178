"""What overlap costs a run: nothing, or a worse loss? Servers that answer within 0, 5 and 50 steps against blocking.

    python bench/overlap.py [--json FILE] [--seeds N] [--interval N] [--periods N] [--arms NAME ...] [--forecaster NAME ...]

Trains a small convnet (5,000 parameters) on Fashion-MNIST, the same seeds and batches in all arms, in turns. Every arm is judged
by its validation loss, averaged over the evaluations of each period:

    plain      without nowcasts
    blocking   training waits for each forecast
    N steps    training goes on, the answer is held back for N steps, and the displacement is added on arrival

    ratio      loss of the last period, to blocking's of the same seed; the median over the seeds
    worst      the highest such ratio of any period, median over the seeds
    blocked    share of the training time in which training waited: for forecasts, and for snapshots to be copied
"""

import argparse
import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

from trainer_worker import FixedHorizon, Nowcast
from trainer_worker.endpoints.deadline import Deadline
from trainer_worker.endpoints.embedded import EmbeddedEndpoint, load_embedded
from trainer_worker.tasks import load_task
from trainer_worker.tasks.batches import batch_indices
from trainer_worker.tasks.convnet import convnet
from trainer_worker.tasks.task import Task

BATCH, LR, EVALUATE_EVERY, VALIDATION = 64, 6e-3, 50, 1000
CONTEXT: Final = 5
ARMS: Final[dict[str, int | None]] = {"plain": None, "blocking": None, "0 steps": 0, "5 steps": 5, "50 steps": 50}


class LateEndpoint(EmbeddedEndpoint):
    """Holds each forecast back until training has gone on by so many steps."""

    local = False  # else overlap would wait for it

    def __init__(self, forecaster: Any, steps: int) -> None:
        super().__init__(forecaster)
        self._steps = steps
        self._now = 0
        self._stepped = threading.Condition()

    def step(self, now: int) -> None:
        """Training has taken a step."""
        with self._stepped:
            self._now = now
            self._stepped.notify_all()

    def forecast(self, step: int, horizons: tuple[int, ...], out: Tensor, *, deadline: Deadline) -> None:
        """Forecast at once, answer later."""
        super().forecast(step, horizons, out, deadline=deadline)
        with self._stepped:
            self._stepped.wait_for(lambda: self._now >= step + self._steps, timeout=deadline.left_s)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--json", type=Path, help="write the figures to this file")
    options.add_argument("--seeds", type=int, default=3, help="runs of each arm [3]")
    options.add_argument("--interval", type=int, default=60, help="steps between snapshots, more than 50 [60]")
    options.add_argument("--periods", type=int, default=6, help=f"of {CONTEXT} intervals, of each run [6]")
    options.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="[all]; blocking has to be among them")
    options.add_argument("--forecaster", default="linear", help="[linear]")
    options.add_argument("--checkpoint", help="weights of the forecaster")
    options.add_argument("--horizon", type=int, default=4, help="of each jump, in intervals [4]")
    given = options.parse_args()
    torch.set_num_threads(1)
    task = load_task("fm-16")
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in given.arms}
    for seed in range(given.seeds):
        for name in given.arms:
            runs[name].append(train(task, seed, given=given, nowcasts=name != "plain", late=ARMS[name]))
    figures = {name: compare(mine, runs["blocking"]) for name, mine in runs.items()}
    print(f"{'':10}{'loss':>8}{'ratio':>8}{'worst':>8}{'jumps':>7}{'blocked':>9}")
    for name, row in figures.items():
        print(f"{name:10}{row['loss']:>8.4f}{row['ratio']:>8.3f}{row['worst']:>8.3f}{row['jumps']:>7.0f}{row['blocked']:>9.2%}")
    if given.json:
        given.json.write_text(json.dumps({"options": {**vars(given), "json": None}, "arms": figures, "runs": runs}, indent=2))


def compare(mine: Sequence[dict[str, Any]], blocking: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Medians over the seeds of one arm."""
    ratios = [
        [a / b for a, b in zip(run["losses"], other["losses"], strict=True)] for run, other in zip(mine, blocking, strict=True)
    ]
    return {
        "loss": median(run["losses"][-1] for run in mine),
        "ratio": median(ratio[-1] for ratio in ratios),
        "worst": median(max(ratio) for ratio in ratios),
        "jumps": median(run["jumps"] for run in mine),
        "blocked": median(run["blocked_s"] / run["train_s"] for run in mine),
    }


def train(task: Task, seed: int, *, given: argparse.Namespace, nowcasts: bool, late: int | None) -> dict[str, Any]:
    """One run, with nowcasts or without; they overlap if they come `late`."""
    period = given.interval * CONTEXT
    steps = given.periods * period
    torch.manual_seed(seed)
    model = convnet(8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0)
    nowcast, endpoint = None, None
    if nowcasts:
        forecaster = load_embedded(given.forecaster, checkpoint=given.checkpoint, device=torch.device("cpu"))
        endpoint = LateEndpoint(forecaster, -1 if late is None else late)  # blocking: before the step is over
        nowcast = Nowcast(
            model,
            optimizer,
            server=endpoint,
            max_steps=steps,
            interval=given.interval,
            context=CONTEXT,
            forecaster=given.forecaster,
            policy=FixedHorizon(given.horizon),
            overlap=late is not None,
        )
        nowcast.__enter__()
    held = task.validation.take(torch.arange(VALIDATION))
    losses: list[float] = []
    train_s = 0.0
    for index in range(steps):
        started = time.perf_counter()
        inputs, targets = task.train.take(batch_indices(len(task.train), batch_size=BATCH, seed=seed, step=index))
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        if endpoint is not None:
            endpoint.step(index + 1)
        train_s += time.perf_counter() - started
        if (index + 1) % EVALUATE_EVERY == EVALUATE_EVERY // 2:  # never right after a jump
            with torch.no_grad():
                losses.append(float(functional.cross_entropy(model(held[0]), held[1])))
    summary: dict[str, Any] = {"nowcasts": {"accepted": 0}, "waited_s": 0.0, "copied_s": 0.0}
    if nowcast is not None:
        nowcast.__exit__(None, None, None)
        summary = nowcast.summary()
    each = period // EVALUATE_EVERY
    return {
        "losses": [sum(losses[start : start + each]) / each for start in range(each, len(losses), each)],  # from the first jump on
        "jumps": summary["nowcasts"]["accepted"],
        "blocked_s": summary["waited_s"] + summary["copied_s"],
        "train_s": train_s,
    }


if __name__ == "__main__":
    main()
