"""What a run loses to a forecaster that means harm.

    python bench/hostile.py [--seeds N] [--steps N] [--tasks NAME ...] [--kinds NAME ...] [--json FILE]

Trains a small MLP and a small convnet on Fashion-MNIST (pictures of 14 x 14), with default settings, against forecasters in place
of the real one: hostile ones, and `linear`, `spectral`, `average` and `last` for comparison. A run's final loss is its mean
validation loss over the last tenth of the steps, given relative to the plain run of the same seed. Everything is seeded: the same
command gives the same table.
"""

import argparse
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from statistics import mean, median
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from nowcast_server.forecasters import load_forecaster
from protos.messages import JobSpec, Progress, Skill
from trainer_worker import Nowcast
from trainer_worker.endpoints.endpoint import Asked, Deadline
from trainer_worker.tasks.task import convnet, load_task

STALE_STEPS: Final = 1000
BATCH: Final = 64

Forecast = Callable[["Endpoint", Sequence[int]], Tensor]


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

    def send(self, step: int, snapshot: Tensor, *, progress: Progress | None = None, deadline: Deadline) -> None:
        del progress, deadline
        self.history[step] = snapshot.clone()

    def forecast(self, asked: Asked, out: Tensor, *, deadline: Deadline) -> None:
        if asked.newest is not None:
            self.send(asked.context[-1], asked.newest, progress=asked.progress, deadline=deadline)
        out.copy_(self._forecast(self, asked.context))

    def finish(self, progress: Progress, *, deadline: Deadline) -> Skill:
        """Nobody keeps it."""
        del progress, deadline
        return {}

    def close(self) -> None:
        """Nothing to let go of."""

    def last(self, context: Sequence[int]) -> Tensor:
        return self.history[context[-1]]

    def known(self, name: str, context: Sequence[int]) -> Tensor:
        """What one of the server's forecasters says."""
        forecaster = load_forecaster(name)
        states = [self.history[step] for step in context]
        return forecaster.forecast(self.spec.wiring, states, (forecaster.glide_horizon,))[0]

    def randn(self, context: Sequence[int]) -> Tensor:
        """Noise as large as the weights."""
        return torch.randn(self.last(context).shape, generator=self.noise) * self.last(context).std()

    def stale(self, context: Sequence[int]) -> Tensor:
        """What `linear` said `STALE_STEPS` ago, else of the first snapshots of all."""
        ago = [step for step in self.history if step <= context[-1] - STALE_STEPS][-len(context) :]
        old = ago if len(ago) == len(context) else list(self.history)[: len(context)]
        return self.last(context) + self.known("linear", old) - self.history[old[-1]]


HOSTILE: Final[dict[str, Forecast]] = {
    "random": lambda endpoint, context: endpoint.randn(context),
    "sign-flipped": lambda endpoint, context: 2 * endpoint.last(context) - endpoint.known("linear", context),
    "exploding": lambda endpoint, context: endpoint.last(context) * 1e6,
    "nan": lambda endpoint, context: endpoint.last(context) * torch.nan,
    "stale": lambda endpoint, context: endpoint.stale(context),
    "noise": lambda endpoint, context: endpoint.last(context) + 0.1 * endpoint.randn(context),
}
FORECASTS: Final[dict[str, Forecast]] = {
    **HOSTILE,
    "linear": lambda endpoint, context: endpoint.known("linear", context),
    "spectral": lambda endpoint, context: endpoint.known("spectral", context),
    "average": lambda endpoint, context: endpoint.known("average", context),
    "last": lambda endpoint, context: endpoint.last(context),
}


@dataclass(frozen=True)
class Split:
    """Pictures (n, 1, 14, 14) and labels (n,)."""

    inputs: Tensor
    targets: Tensor

    def loss(self, model: nn.Module) -> Tensor:
        return functional.cross_entropy(model(self.inputs), self.targets)


@cache
def splits() -> tuple[Split, Split]:
    """To train on, and to judge by: Fashion-MNIST, halved."""
    task = load_task("fm-16")
    return tuple(Split(functional.avg_pool2d(each.inputs, 2), each.targets) for each in (task.train, task.validation))  # type: ignore[return-value]


def mlp() -> nn.Module:
    """196-32-10."""
    return nn.Sequential(nn.Flatten(), nn.Linear(196, 32), nn.ReLU(), nn.Linear(32, 10))


TASKS: Final[dict[str, tuple[Callable[[], nn.Module], float]]] = {"mlp": (mlp, 3e-3), "convnet": (lambda: convnet(8), 3e-3)}
"""Network and learning rate."""


@dataclass(frozen=True)
class Result:
    """One run: its final loss, forecasts used and skipped."""

    loss: float
    used: int = 0
    skipped: int = 0


def train(task: str, kind: str, *, seed: int, steps: int) -> Result:
    """One run, plain if `kind` is `adam`.

    Args:
        task: of `TASKS`.
        kind: of `FORECASTS`.
        seed: of weights, batches and noise.
        steps: of the run.
    """
    build, rate = TASKS[task]
    training, judge = splits()
    torch.manual_seed(seed)
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    losses: list[float] = []

    def loop() -> None:
        batches = torch.Generator().manual_seed(seed)
        for step in range(1, steps + 1):
            chosen = torch.randint(len(training.targets), (BATCH,), generator=batches)
            optimizer.zero_grad()
            Split(training.inputs[chosen], training.targets[chosen]).loss(model).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if step > 0.9 * steps and step % 10 == 0:
                with torch.no_grad():
                    losses.append(float(judge.loss(model)))

    if kind == "adam":
        loop()
        return Result(mean(losses))
    with Nowcast(model, optimizer, server=Endpoint(kind, seed=seed), max_steps=steps) as nowcast:
        loop()
    return Result(mean(losses), **nowcast.summary()["nowcasts"])


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--seeds", type=int, default=5, help="seeds of each [5]")
    options.add_argument("--steps", type=int, default=2000, help="of a run [2000]")
    options.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    options.add_argument("--kinds", nargs="+", choices=FORECASTS, default=list(FORECASTS))
    options.add_argument("--json", type=Path, help="write the figures to this file")
    given = options.parse_args()
    torch.set_num_threads(1)
    rows = []
    print(f"{'task':9}{'forecaster':14}{'median':>9}{'worst':>9}{'used':>10}{'skipped':>10}")
    for task in given.tasks:
        plain = [train(task, "adam", seed=seed, steps=given.steps).loss for seed in range(given.seeds)]
        print(f"{task:9}{'adam':14}{median(plain):9.4f}")
        for kind in given.kinds:
            runs = [train(task, kind, seed=seed, steps=given.steps) for seed in range(given.seeds)]
            over = [run.loss / base - 1 for run, base in zip(runs, plain, strict=True)]
            rows.append({"task": task, "kind": kind, "over": over, "plain": plain, "runs": [asdict(run) for run in runs]})
            counts = "".join(f"{sum(getattr(run, name) for run in runs):10}" for name in ("used", "skipped"))
            print(f"{task:9}{kind:14}{median(over):+9.2%}{max(over):+9.2%}{counts}", flush=True)
    if given.json:
        given.json.write_text(json.dumps({"steps": given.steps, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
