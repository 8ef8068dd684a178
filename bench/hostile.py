"""What a guarded run loses to a forecaster that means harm, and what the guard costs a good one.

    python bench/hostile.py [--seeds N] [--steps N] [--tasks NAME ...] [--kinds NAME ...] [--json FILE]

Trains a small MLP and a small convnet on Fashion-MNIST (pictures of 14 x 14) with a probe of 1,000 pictures, ten periods in all,
against forecasters in place of NiNo: hostile ones, and `linear`, `average` and `last` for comparison. A run's final loss is its
mean validation loss (4,000 other pictures) over the last tenth of the steps, given relative to the plain run of the same seed.
Everything is seeded: the same command gives the same table.
"""

import argparse
import json
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from statistics import mean, median
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from nowcast_server.forecasters import load_forecaster
from protos.messages import JobSpec, Outcome, Skill
from trainer_worker import FixedHorizon, Nowcast
from trainer_worker.endpoints.deadline import Deadline
from trainer_worker.tasks import load_task
from trainer_worker.tasks.convnet import convnet

CONTEXT: Final = 5
PERIODS: Final = 10
STALE_STEPS: Final = 1000
BATCH: Final = 64

Forecast = Callable[["Endpoint", int, int], Tensor]


class Endpoint:
    """Forecasts in process by one of `FORECASTS`; remembers every snapshot.

    Args:
        kind: which.
        seed: of its noise.
    """

    local = True

    def __init__(self, kind: str, *, seed: int = 0) -> None:
        self.history: dict[int, Tensor] = {}
        self.noise = torch.Generator().manual_seed(seed)
        self._forecast = FORECASTS[kind]

    def register(self, spec: JobSpec, *, replace: bool, deadline: Deadline) -> Collection[int]:
        del replace, deadline
        self.spec = spec
        return ()

    def send(self, step: int, snapshot: Tensor, *, deadline: Deadline) -> None:
        del deadline
        self.history[step] = snapshot.clone()

    def forecast(self, step: int, horizons: tuple[int, ...], out: Tensor, *, deadline: Deadline) -> None:
        del deadline
        for row, horizon in zip(out, horizons, strict=True):
            row.copy_(self._forecast(self, step, horizon))

    def report(self, outcome: Outcome, *, deadline: Deadline) -> None:
        """Nobody to tell."""

    def skill(self, *, deadline: Deadline) -> Skill:
        """Nobody keeps it."""
        del deadline
        return {}

    def close(self) -> None:
        """Nothing to let go of."""

    def last(self, step: int) -> Tensor:
        return self.history[step]

    def known(self, name: str, step: int, horizon: int) -> Tensor:
        """What one of the server's forecasters says."""
        interval = self.spec.interval
        steps = range(step - (self.spec.context - 1) * interval, step + 1, interval)
        states = torch.stack([self.history[each] for each in steps])
        return load_forecaster(name).forecast(self.spec.wiring, states, (horizon,))[0]

    def randn(self, step: int) -> Tensor:
        """Noise as large as the weights."""
        return torch.randn(self.last(step).shape, generator=self.noise) * self.last(step).std()

    def stale(self, step: int) -> Tensor:
        """The newest snapshot that is `STALE_STEPS` old, else the first of all."""
        return self.history[max((each for each in self.history if each <= step - STALE_STEPS), default=min(self.history))]


HOSTILE: Final[dict[str, Forecast]] = {
    "random": lambda endpoint, step, _: endpoint.randn(step),
    "sign-flipped": lambda endpoint, step, horizon: 2 * endpoint.last(step) - endpoint.known("linear", step, horizon),
    "exploding": lambda endpoint, step, _: endpoint.last(step) * 1e6,
    "nan": lambda endpoint, step, _: endpoint.last(step) * torch.nan,
    "stale": lambda endpoint, step, _: endpoint.stale(step),
    "noise": lambda endpoint, step, _: endpoint.last(step) + 0.1 * endpoint.randn(step),
}
FORECASTS: Final[dict[str, Forecast]] = {
    **HOSTILE,
    "linear": lambda endpoint, step, horizon: endpoint.known("linear", step, horizon),
    "average": lambda endpoint, step, horizon: endpoint.known("average", step, horizon),
    "last": lambda endpoint, step, _: endpoint.last(step),
}


@dataclass(frozen=True)
class Split:
    """Pictures (n, 1, 14, 14) and labels (n,)."""

    inputs: Tensor
    targets: Tensor

    def loss(self, model: nn.Module) -> Tensor:
        return functional.cross_entropy(model(self.inputs), self.targets)


@cache
def splits() -> tuple[Split, Split, Split]:
    """To train on, to probe with, to judge by: Fashion-MNIST, halved."""
    task = load_task("fm-16")

    def halved(inputs: Tensor, targets: Tensor) -> Split:
        return Split(functional.avg_pool2d(inputs, 2), targets)

    held = halved(task.validation.inputs, task.validation.targets)
    return (
        halved(task.train.inputs, task.train.targets),
        Split(held.inputs[:1000], held.targets[:1000]),
        Split(held.inputs[1000:], held.targets[1000:]),
    )


def mlp() -> nn.Module:
    """196-32-10."""
    return nn.Sequential(nn.Flatten(), nn.Linear(196, 32), nn.ReLU(), nn.Linear(32, 10))


TASKS: Final[dict[str, tuple[Callable[[], nn.Module], float]]] = {"mlp": (mlp, 3e-3), "convnet": (lambda: convnet(8), 3e-3)}
"""Network and learning rate."""


@dataclass(frozen=True)
class Result:
    """One run: its final loss, steps undone, jumps accepted, rejected and skipped."""

    loss: float
    cost_steps: int = 0
    accepted: int = 0
    rejected: int = 0
    skipped: int = 0


def train(task: str, kind: str, *, seed: int, steps: int, guarded: bool = True, horizon: int | None = None) -> Result:
    """One run, plain if `kind` is `adam`.

    Args:
        task: of `TASKS`.
        kind: of `FORECASTS`.
        seed: of weights, batches and noise.
        steps: of the run.
        guarded: whether jumps are tried; otherwise every one stays.
        horizon: fixed; None for the paper's schedule.
    """
    build, rate = TASKS[task]
    training, probe, judge = splits()
    torch.manual_seed(seed)
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    losses: list[float] = []

    def loop() -> None:
        batches = torch.Generator().manual_seed(seed)
        for step in range(1, steps + 1):
            chosen = torch.randint(len(training.targets), (BATCH,), generator=batches)
            optimizer.zero_grad()
            Split(training.inputs[chosen], training.targets[chosen]).loss(model).backward()
            optimizer.step()
            if step > 0.9 * steps and step % 10 == 0:
                with torch.no_grad():
                    losses.append(float(judge.loss(model)))

    if kind == "adam":
        loop()
        return Result(mean(losses))
    nowcast = Nowcast(
        model,
        optimizer,
        server=Endpoint(kind, seed=seed),
        max_steps=steps,
        interval=steps // (PERIODS * CONTEXT),
        context=CONTEXT,
        policy=None if horizon is None else FixedHorizon(horizon),
        probe=(lambda: probe.loss(model)) if guarded else None,
    )
    with nowcast:
        loop()
    summary = nowcast.summary()
    return Result(mean(losses), summary["cost_steps"], **summary["nowcasts"])


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--seeds", type=int, default=5, help="seeds of each [5]")
    options.add_argument("--steps", type=int, default=2000, help="of a run [2000]")
    options.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    options.add_argument("--kinds", nargs="+", choices=FORECASTS, default=list(FORECASTS))
    options.add_argument("--horizon", type=int, help="the same for every nowcast; without it the paper's schedule")
    options.add_argument("--unguarded", action="store_true", help="no trials: every jump stays")
    options.add_argument("--json", type=Path, help="write the figures to this file")
    given = options.parse_args()
    torch.set_num_threads(1)
    rows = []
    print(f"{'task':9}{'forecaster':14}{'median':>9}{'worst':>9}{'steps lost':>12}{'accepted':>10}{'rejected':>10}{'skipped':>10}")
    for task in given.tasks:
        plain = [train(task, "adam", seed=seed, steps=given.steps).loss for seed in range(given.seeds)]
        print(f"{task:9}{'adam':14}{median(plain):9.4f}")
        for kind in given.kinds:
            options_of = {"steps": given.steps, "horizon": given.horizon, "guarded": not given.unguarded}
            runs = [train(task, kind, seed=seed, **options_of) for seed in range(given.seeds)]
            over = [run.loss / base - 1 for run, base in zip(runs, plain, strict=True)]
            rows.append({"task": task, "kind": kind, "over": over, "plain": plain, "runs": [asdict(run) for run in runs]})
            print(show(task, kind, over, runs), flush=True)
    if given.json:
        given.json.write_text(json.dumps({"steps": given.steps, "rows": rows}, indent=1))


def show(task: str, kind: str, over: list[float], runs: list[Result]) -> str:
    """A row of the table: losses relative to plain, the most steps lost, jumps in all."""
    counts = "".join(f"{sum(getattr(run, name) for run in runs):10}" for name in ("accepted", "rejected", "skipped"))
    return f"{task:9}{kind:14}{median(over):+9.2%}{max(over):+9.2%}{max(run.cost_steps for run in runs):12}{counts}"


if __name__ == "__main__":
    main()
