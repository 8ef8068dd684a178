"""The training loop: one for every harness, with Ray or without, data-parallel or not."""

import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from trainer_worker.endpoints.server import Server
from trainer_worker.nowcast import Nowcast
from trainer_worker.tasks.task import Task, batch_indices, evaluate, load_task
from trainer_worker.training.records import Evaluation, Order, RunRecord, Score

State = dict[str, Any]  # a run at one step, all workers together: weights, optimizer, nowcasts, step, evaluations, …


class Harness(Protocol):
    """Where a worker runs."""

    rank: int
    world: int
    device: torch.device

    def latest(self) -> State | None:
        """The newest checkpoint of this run, its tensors on the CPU; called once, before the first step."""

    def save(self, state: State) -> None:
        """Keep a checkpoint, rank 0's; every worker calls it at the same steps, and it may wait for all of them."""

    def tell(self, news: str) -> None:
        """Pass on a line for whoever watches; must not wait. Called on rank 0."""


def train(order: Order, harness: Harness) -> RunRecord:
    """Train one run to its last step, from its newest checkpoint, if any. Order and number of workers alone decide its weights
    at every step: once stopped and resumed, it ends in the same bits (on a CPU, with embedded forecasts or a server that answers).
    """
    run = _Run(order, harness)
    settings = order.config.train
    run.restore(harness.latest())  # first, so that a server that refuses the job now does not end the run
    with run.nowcast or nullcontext():
        run.started = time.perf_counter()
        while run.step < settings.steps:
            run.advance()
            last = run.step == settings.steps
            if last or run.step % settings.eval_every == 0:
                run.evaluate()
            if last or run.step % settings.checkpoint_every == 0:
                run.save()
    return run.record()


class _Run:
    """One run under way, as one worker holds it."""

    def __init__(self, order: Order, harness: Harness) -> None:
        self.order, self.harness, self.share = order, harness, {"rank": harness.rank, "world": harness.world}
        table = order.config.task
        self.task: Task = load_task(table.name, data=table.data, examples=table.examples, device=harness.device)
        torch.manual_seed(order.seed)
        self.model = self.task.build().to(harness.device)
        settings = order.config.train
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
        self.replica: nn.Module = DistributedDataParallel(self.model) if harness.world > 1 else self.model
        self.average = average_of(self.model, decay=settings.average) if settings.average else None
        self.nowcast: Nowcast | None = _nowcast(order, self)
        self.step = 0
        self.restores = 0
        self.evaluations: list[Evaluation] = []
        self.train_s = 0.0
        self.started = time.perf_counter()
        # sum of this worker's training losses, and number of batches, since the last evaluation
        self.trained = torch.zeros(2, dtype=torch.float64, device=harness.device)
        self._seed()

    def advance(self) -> None:
        """One optimizer step; pushes are added in the optimizer's hook."""
        examples, size = len(self.task.train), self.order.config.train.batch_size
        indices = batch_indices(examples, batch_size=size, seed=self.order.seed, step=self.step, **self.share)
        inputs, targets = self.task.train.take(indices)
        loss = functional.cross_entropy(self.replica(inputs), targets)
        loss.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
        if self.nowcast is not None:
            self.nowcast.observe(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.trained[0] += loss.detach()
        self.trained[1] += 1
        self.step += 1

    def evaluate(self) -> None:
        """Measure on validation and test data, of which every worker takes a share, and tell it."""
        self._stop_clock()
        total, batches = self._over_all_workers(self.trained).tolist()
        validation, test = self._scores(self.model if self.average is None else self.average)
        self.evaluations.append(
            Evaluation(step=self.step, train_loss=total / batches, validation=validation, test=test, train_s=self.train_s)
        )
        if self.harness.rank == 0:
            at = f"step {self.step} of {self.order.config.train.steps}"
            forecasts = f"; forecasts {self.nowcast.summary()['nowcasts']}" if self.nowcast else ""
            self.harness.tell(f"{at}: validation loss {validation.loss:.4f}, accuracy {validation.accuracy:.1%}{forecasts}")
        self.trained.zero_()
        self.started = time.perf_counter()

    def _scores(self, model: nn.Module) -> list[Score]:
        parts = [evaluate(model, split, **self.share) for split in (self.task.validation, self.task.test)]
        sums = self._over_all_workers(torch.stack(parts)).tolist()
        return [Score(loss=loss / count, accuracy=right / count) for loss, right, count in sums]

    def save(self) -> None:
        self._stop_clock()
        self.harness.save(
            {
                "model": self.model.state_dict(),
                "average": self.average.state_dict() if self.average is not None else None,
                "optimizer": self.optimizer.state_dict(),
                "nowcast": self.nowcast.state_dict() if self.nowcast else None,
                "trained": self._over_all_workers(self.trained),
                "step": self.step,
                "evaluations": [evaluation.model_dump() for evaluation in self.evaluations],
                "train_s": self.train_s,
                "restores": self.restores,
                "terms": self.order.terms,
            }
        )
        self._seed()
        self.started = time.perf_counter()

    def restore(self, state: State | None) -> None:
        """Go on from a checkpoint of the same configuration."""
        if state is None:
            return
        self.order.check(state["terms"])
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.nowcast:
            self.nowcast.load_state_dict(state["nowcast"])
        if self.harness.rank == 0:  # what all workers trained together
            self.trained.copy_(state["trained"])
        self.step, self.train_s, self.restores = state["step"], state["train_s"], state["restores"] + 1
        table, kept = self.order.config.train, map(Evaluation.model_validate, state["evaluations"])
        # without the last of a run that was to be shorter: curves of all seeds have the same steps
        self.evaluations = [each for each in kept if each.step % table.eval_every == 0 or each.step == table.steps]
        self._seed()

    def _seed(self) -> None:
        """Seed dropout, which differs between workers: anew at each checkpoint, so that none has to hold random states."""
        torch.manual_seed(((self.order.seed + self.harness.rank) * 2**32 + self.step) % 2**64)

    def record(self) -> RunRecord:
        return RunRecord(
            arm=self.order.config.arm,
            seed=self.order.seed,
            terms=self.order.terms,
            restores=self.restores,
            parameters=sum(parameter.numel() for parameter in self.model.parameters()),
            evaluations=self.evaluations,
            events=[event.to_dict() for event in self.nowcast.events] if self.nowcast else [],
            nowcast=self.nowcast.summary() if self.nowcast else None,
        )

    def _stop_clock(self) -> None:
        if self.harness.device.type == "cuda":
            torch.cuda.synchronize(self.harness.device)
        self.train_s += time.perf_counter() - self.started

    def _over_all_workers(self, sums: Tensor) -> Tensor:
        """Their sum, on the CPU; what is given stays."""
        sums = sums.to(self.harness.device, copy=True)
        if self.harness.world > 1:
            dist.all_reduce(sums)
        return sums.cpu()


def average_of(model: nn.Module, *, decay: float) -> AveragedModel:
    """An exponential moving average of the weights. Its memory is short at first: a quarter of the steps so far."""

    def mean(average: Tensor, value: Tensor, steps: Tensor | int) -> Tensor:
        return average.lerp(value, 1 - min(decay, int(steps) / (int(steps) + 4)))

    return AveragedModel(model, avg_fn=mean)


def _nowcast(order: Order, run: _Run) -> Nowcast | None:
    table, harness, embedded = order.config.nowcast, run.harness, order.server is None
    if table is None:
        return None
    return Nowcast(
        run.model,
        run.optimizer,
        max_steps=order.config.train.steps,
        interval=table.interval,
        mode=table.mode,
        forecaster=table.forecaster if embedded else table.name,
        server=Server(
            order.server or "embedded",
            token=order.token,
            job=order.job,
            timeout_s=table.timeout_s,
            dtype=table.dtype,
            record=table.record,
        ),
        push=table.push,
        on_event=(lambda event: harness.tell(str(event)) if event.kind == "server" else None) if harness.rank == 0 else None,
    )


def train_in_process(order: Order, *, listen: Callable[[str], None]) -> RunRecord:
    """Train one run in this process, its newest checkpoint in a folder; the arguments are those of `train_on_ray`."""
    folder = order.config.output.folder / "checkpoints" / order.name
    if order.config.workers.threads:
        torch.set_num_threads(order.config.workers.threads)
    return train(order, FolderHarness(folder, listen))


class FolderHarness:
    """The only worker of a run, with its newest checkpoint in a folder."""

    rank = 0
    world = 1

    def __init__(self, folder: Path, listen: Callable[[str], None]) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._path = folder / "checkpoint.pt"
        self._listen = listen

    def latest(self) -> State | None:
        return torch.load(self._path, weights_only=True, map_location="cpu") if self._path.exists() else None

    def save(self, state: State) -> None:
        """Replace the old checkpoint, at once or not at all."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._path.with_suffix(f".{os.getpid()}")
        torch.save(state, fresh)
        fresh.replace(self._path)

    def tell(self, news: str) -> None:
        self._listen(news)
