"""A training run that takes milliseconds, and endpoints that need no server."""

import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from protos.errors import HistoryMissing
from protos.messages import JobSpec, Progress, Skill
from trainer_worker import Nowcast, Push
from trainer_worker.endpoints.endpoint import Asked, Deadline
from trainer_worker.push import CONTEXT
from trainer_worker.training.records import RunRecord

INTERVAL: Final = 2
FULL: Final = CONTEXT * INTERVAL
"""The step at which the first context is whole."""
FIRST: Final = FULL + INTERVAL
"""The step at which the first forecast is taken up."""
STEPS: Final = 10 * INTERVAL + 3
"""Of a run, which takes up six forecasts."""
TAKEN_UP: Final = list(range(FIRST, STEPS, INTERVAL))
STEADY: Final = Push(gain=0.5, start=0.0, fade=1.0)
"""The same gain from the first context to the end."""
UNHELD: Final = replace(STEADY, hold_norms=False)

Forecast = Callable[[Sequence[Tensor], int], Tensor]


def network(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """An MLP of 8-16-2, the same for a seed."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2)).to(dtype)


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-2)


def learner() -> tuple[nn.Sequential, torch.optim.Optimizer]:
    """A network and its optimizer."""
    model = network()
    return model, adam(model)


def flat(model: nn.Module) -> Tensor:
    """The parameters as one vector."""
    return torch.cat([parameter.detach().reshape(-1).clone() for parameter in model.parameters()])


def step(model: nn.Module, optimizer: torch.optim.Optimizer, index: int) -> None:
    """Train on batch `index`, which is the same in every run."""
    generator = torch.Generator().manual_seed(index)
    dtype = next(model.parameters()).dtype
    inputs = torch.randn(32, 8, generator=generator).to(dtype)
    optimizer.zero_grad()
    functional.cross_entropy(model(inputs), (inputs.sum(1) > 0).long()).backward()
    optimizer.step()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, indices: range, waiting: Nowcast | None = None) -> None:
    """Train on these batches, one after the other; after each, `waiting` settles."""
    for index in indices:
        step(model, optimizer, index)
        if waiting is not None:
            settle(waiting)


def plain(steps: int = STEPS) -> Tensor:
    """The weights of a run without nowcasts."""
    model, optimizer = learner()
    train(model, optimizer, range(steps))
    return flat(model)


def onward(states: Sequence[Tensor], horizon: int) -> Tensor:
    """Every weight goes on as it moved, in the mean over the context."""
    return states[-1] + horizon * (states[-1] - states[0]) / (len(states) - 1)


class ScriptedEndpoint:
    """Forecasts as told; remembers what it was asked, and fails when told to.

    Args:
        forecast: of the states of a context, (n,) float32 each, and a horizon.
        fail: called with the name of each call before it is done; may raise, or wait.
        local: its answers are waited for, like those of forecasters in this process.
    """

    def __init__(self, forecast: Forecast = onward, *, fail: Callable[[str], Any] = lambda _: None, local: bool = True) -> None:
        self.local, self.fail, self._forecast = local, fail, forecast
        self.history: dict[int, Tensor] = {}
        self.sent: dict[int, Tensor] = {}
        self.asked: list[tuple[int, ...]] = []
        self.told: list[Progress] = []
        self.apart = False  # the last request came without a snapshot
        self.finished: Progress | None = None
        self.closed = False

    def register(self, spec: JobSpec, *, replace: bool, deadline: Deadline) -> Collection[int]:
        self.fail("register")
        self.spec = spec
        if replace:
            self.history.clear()
        return tuple(self.history)

    def send(self, step: int, snapshot: Tensor, *, progress: Progress | None = None, deadline: Deadline) -> None:
        self.fail("send")
        if progress is not None:
            self.told.append(progress)
        self.history[step] = self.sent[step] = snapshot.clone()

    def forecast(self, asked: Asked, out: Tensor, *, deadline: Deadline) -> None:
        context, self.apart = asked.context, asked.newest is None
        if asked.newest is not None:
            self.send(context[-1], asked.newest, progress=asked.progress, deadline=deadline)
        self.fail("forecast")
        missing = [step for step in context if step not in self.history]
        if missing:
            raise HistoryMissing("lost", missing=missing)
        self.asked.append(tuple(context))
        states = [self.history[step].float() for step in context]
        for row, horizon in zip(out, asked.horizons or (1,), strict=True):
            row.copy_(self._forecast(states, horizon))

    def finish(self, progress: Progress, *, deadline: Deadline) -> Skill:
        self.fail("finish")
        self.finished = progress
        return {}

    def close(self) -> None:
        self.closed = True


class Fails:
    """What the next calls of each name meet: an error, a gate that holds them up until it is opened, or nothing."""

    def __init__(self, **calls: Iterable[Exception | threading.Event | None]) -> None:
        self.begun: list[str] = []
        self.calls = {call: iter(met) for call, met in calls.items()}

    def __call__(self, call: str) -> None:
        self.begun.append(call)
        met = next(self.calls.get(call, iter(())), None)
        if isinstance(met, Exception):
            raise met
        assert met is None or met.wait(120)


def make(model: nn.Module, optimizer: Any, endpoint: Any, **options: Any) -> Nowcast:
    """A `Nowcast` of a small run."""
    defaults = {"max_steps": STEPS, "interval": INTERVAL, "server": endpoint, "push": STEADY}
    return Nowcast(model, optimizer, **{**defaults, **options})


def settle(nowcast: Nowcast) -> None:
    """Wait for the answer to what was asked for: the steps of so small a network are over long before it comes."""
    request = nowcast._boundaries._asked
    if request is not None:
        assert request.done.wait(300)


def nowcasts(nowcast: Nowcast) -> list[tuple[int, str, str]]:
    """Step, outcome and reason of each."""
    return [(event.step, event.outcome, event.reason) for event in nowcast.events if event.kind == "nowcast"]


def without_times(record: RunRecord) -> list[dict[str, Any]]:
    """A run's evaluations, but for how long they took."""
    return [evaluation.model_dump(exclude={"train_s"}) for evaluation in record.evaluations]
