"""Runs of the training loop as Ray Train jobs: data-parallel workers, checkpoints, restarts."""

import logging
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
import torch
from ray import train as ray_train
from ray.exceptions import RayActorError
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from trainer_worker.errors import BadArgument, CommandFailed
from trainer_worker.training.config import WorkersTable
from trainer_worker.training.loop import Checkpoint, train
from trainer_worker.training.ray_cluster import WORKER_ENVIRONMENT, run_workers, start_local_cluster
from trainer_worker.training.records import Order, RunRecord

Listener = Callable[[dict[str, Any]], None]


class TrainingFailed(CommandFailed):
    """A run ended with an error, restarts included."""


@contextmanager
def cluster(workers: WorkersTable) -> Iterator[None]:
    """The Ray cluster of the configuration, for a while: the one at its address, one already joined, or a local one.

    Raises:
        TrainingFailed: no cluster at the address.
    """
    if ray.is_initialized():
        yield
        return
    if workers.address:
        try:
            runtime_env = {"env_vars": WORKER_ENVIRONMENT}
            ray.init(workers.address, log_to_driver=False, logging_level=logging.ERROR, runtime_env=runtime_env)
        except ConnectionError as error:
            raise TrainingFailed(f"no Ray cluster at {workers.address}: {error}") from error
    else:
        start_local_cluster()
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def open_mailbox(listen: Listener) -> Iterator[Any]:
    """The actor of a queue, for workers to `put_nowait.remote` their news to; `listen` hears it, on another thread, until the end.

    The actor lives on this process's node, so that no other can take it along; if it is lost nevertheless, so is progress, and
    nothing else.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    queue: Any = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})  # Any: ray leaves it unannotated

    def deliver() -> None:
        with suppress(RayActorError):
            for news in iter(queue.get, None):
                listen(news)

    thread = threading.Thread(target=deliver, name="nowcast-progress", daemon=True)
    thread.start()
    try:
        yield queue.actor
    finally:
        with suppress(RayActorError):
            queue.put(None)
        thread.join()
        queue.shutdown(force=True)


def train_on_ray(order: Order, *, listen: Listener) -> RunRecord:
    """Train one run on the connected cluster, from its newest checkpoint if it has one.

    `listen` is called with the workers' progress, from another thread.

    Raises:
        BadArgument: an argument that cannot work, as the workers found; they are not started again.
        StorageUnusable: checkpoints cannot go where they should.
        TrainingFailed: the workers failed more often than `workers.max_failures` allows.
    """
    workers = order.config.workers
    with open_mailbox(listen) as mailbox:
        try:
            ended: dict[str, Any] = run_workers(
                _worker,
                {"order": order.model_dump(), "mailbox": mailbox},
                name=order.name,
                storage=order.config.output.place,
                workers=(workers.count, workers.count),
                gpus=workers.gpus_per_worker,
                max_failures=workers.max_failures,
            )
        except ray_train.TrainingFailedError as error:
            raise TrainingFailed(f"the run {order.name} failed: {error}") from error
    if "argument" in ended:
        raise BadArgument(**ended)
    return RunRecord.model_validate(ended)


def _worker(config: dict[str, Any]) -> Any:  # Any: ray expects None, and passes on what comes
    """What every worker process runs: a run record as JSON values, or the argument that cannot work and why."""
    order = Order.model_validate(config["order"])
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # Ray Train shows what is INFO: a line for each request
    shared_by = ray_train.get_context().get_local_world_size()
    torch.set_num_threads(order.config.workers.threads or max(1, (os.cpu_count() or 1) // shared_by))
    try:
        return train(order, _RayHarness(config["mailbox"])).model_dump()
    except BadArgument as error:  # the same on all ranks; raised here, it would be tried `max_failures` times more
        return {"argument": error.argument, "detail": error.detail}


class _RayHarness:
    """A worker of a Ray Train run."""

    def __init__(self, mailbox: Any) -> None:
        context = ray_train.get_context()
        self.rank: int = context.get_world_rank()
        self.world: int = context.get_world_size()
        self.device = ray_train.torch.get_device()
        self._mailbox = mailbox

    def latest(self) -> Checkpoint | None:
        held = ray_train.get_checkpoint()
        if held is None:
            return None
        with held.as_directory() as folder:
            own = Path(folder) / f"rank-{self.rank}.pt"
            shared = Path(folder) / "shared.pt"
            # not to the device: what goes there is copied there, and random states must stay
            return Checkpoint(*(torch.load(path, weights_only=True, map_location="cpu") for path in (shared, own)))

    def save(self, checkpoint: Checkpoint) -> None:
        step = checkpoint.shared["step"]
        with tempfile.TemporaryDirectory() as folder:
            torch.save(checkpoint.own, Path(folder) / f"rank-{self.rank}.pt")
            if self.rank == 0:
                torch.save(checkpoint.shared, Path(folder) / "shared.pt")
            # a barrier: every rank reports at the same steps
            ray_train.report({"step": step}, checkpoint=ray_train.Checkpoint.from_directory(folder))

    def tell(self, news: dict[str, Any]) -> None:
        self._mailbox.put_nowait.remote(news)
