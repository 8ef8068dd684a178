"""Ray: a cluster on this machine or elsewhere, functions in Ray Train's workers, and runs of the training loop in them."""

import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import ray
import stamina
import torch
from ray import available_resources, cluster_resources
from ray import train as ray_train
from ray.exceptions import RayActorError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from trainer_worker.errors import BadArgument, CommandFailed
from trainer_worker.training.config import WorkersTable
from trainer_worker.training.loop import State, train
from trainer_worker.training.reach import reach
from trainer_worker.training.records import Order, RunRecord
from trainer_worker.training.storage import resolve

logger = logging.getLogger(__name__)

Listener = Callable[[str], None]
FILE: Final = "run.pt"  # of a run, in the folder of a checkpoint
OBJECT_STORE_BYTES: Final = 200 * 1024**2  # for orders and progress only: checkpoints go through files, gradients through gloo
PATIENCE_S: Final = 5.0
POLL_S: Final = 0.5

WORKER_ENVIRONMENT: Final = {
    # glibc gives large blocks back to the system at once; a convnet step then spends half its time in page faults
    "MALLOC_MMAP_THRESHOLD_": "1000000000",
    "MALLOC_TRIM_THRESHOLD_": "10000000000",
}
CLUSTER_ENVIRONMENT: Final = {
    **WORKER_ENVIRONMENT,
    "RAY_USAGE_STATS_ENABLED": os.environ.get("RAY_USAGE_STATS_ENABLED", "0"),
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # workers use the installed package, not an upload of the working directory
    "RAY_worker_niceness": "0",  # training is what this cluster is for; Ray would have it yield (15) to everything else here
}


@contextmanager
def cluster(workers: WorkersTable) -> Iterator[None]:
    """Join the Ray cluster at the configured address, one already joined, or a local one. Raises CommandFailed: none answers."""
    if ray.is_initialized():
        yield
        return
    if workers.address:
        try:
            reach(workers.address)
            runtime_env = {"env_vars": WORKER_ENVIRONMENT}
            ray.init(workers.address, log_to_driver=False, logging_level=logging.ERROR, runtime_env=runtime_env)
        except (OSError, ValueError) as error:
            raise CommandFailed(f"no Ray cluster at {workers.address}: {error}") from error
    else:
        start_local_cluster()
    try:
        yield
    finally:
        ray.shutdown()


# Ray's node gives its own helper processes a fixed 15 s to import; on a machine that is busy it dies of that.
@stamina.retry(on=lambda error: "timed out during startup" in str(error), attempts=3, timeout=None)
def start_local_cluster(*, cpus: int | None = None) -> None:
    """Start a Ray cluster on this machine, by default with all of its CPUs, and connect to it; `ray.shutdown()` ends both."""
    ray.shutdown()  # what is left of the attempt before
    os.environ.update(CLUSTER_ENVIRONMENT)  # Ray's processes inherit it, those that it starts in advance too
    ray.init(
        address="local",  # never a cluster that happens to run on this machine
        num_cpus=cpus or os.cpu_count() or 1,
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


def run_workers(
    function: Callable[[dict[str, Any]], Any],
    arguments: dict[str, Any],
    *,
    name: str,
    storage: str | None,
    workers: Sequence[int],
    cpus: float = 1,
    gpus: float,
    max_failures: int,
) -> Any:
    """Call `function(arguments)` in Ray Train's workers, at least and at most so many, each with so many CPUs and GPUs; what it
    returns on rank 0. A run goes on from the newest checkpoint of its name in its storage (None: Ray's own).
    Raises CommandFailed: checkpoints cannot go there; ray.train.TrainingFailedError: the workers failed more often.
    """
    filesystem, path = resolve(storage) if storage else (None, None)
    least, most = workers
    each = {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
    number: Any = least if least == most else (least, most)  # Any: ray annotates its previous API
    trainer: Any = TorchTrainer(
        function,
        train_loop_config=arguments,
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        scaling_config=ray_train.ScalingConfig(num_workers=number, use_gpu=bool(gpus), resources_per_worker=each),
        run_config=ray_train.RunConfig(
            name=name,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=ray_train.FailureConfig(max_failures=max_failures),
            checkpoint_config=ray_train.CheckpointConfig(num_to_keep=2),
        ),
    )
    warn_without_room(least, each)
    return trainer.fit().return_value


def warn_without_room(workers: int, each: Mapping[str, float]) -> None:
    """Log a warning if the cluster has no room for so many workers (Ray would wait silently), or if they leave GPUs unused."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        free, there = available_resources(), cluster_resources()  # type: ignore[no-untyped-call]  # ray leaves them unannotated
        short = [name for name, amount in each.items() if workers * amount > free.get(name, 0)]
        if not short or time.monotonic() >= deadline:
            break
        time.sleep(POLL_S)  # the places of workers that have just ended are free a moment later
    for name in short:
        asked = f"{name}: {workers} x {each[name]:g} asked for, {free.get(name, 0):g} of {there.get(name, 0):g} free"
        logger.warning("the workers wait for room on the Ray cluster (%s): ask for fewer, or wait for other jobs to end", asked)
    if (idle := free.get("GPU", 0)) and not each.get("GPU"):
        advice = "submit with --gpus 1, or set workers.gpus_per_worker"
        logger.warning("training on CPUs while %g GPUs of the cluster are free: %s", idle, advice)


@contextmanager
def open_mailbox(listen: Listener) -> Iterator[Any]:
    """The actor of a queue, for workers to `put_nowait.remote` their news to; `listen` hears it, on another thread, until the end.
    It lives on this process's node, so that no other can take it along; if it is lost nevertheless, so is progress alone.
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
    """Train one run on the connected cluster, from its newest checkpoint if it has one; `listen` hears of it on another thread.

    Raises:
        BadArgument: an argument that cannot work, as the workers found; they are not started again.
        CommandFailed: the workers failed more often than `workers.max_failures` allows; or see `run_workers`.
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
            raise CommandFailed(f"the run {order.name} failed: {error}") from error
    if "argument" in ended:
        raise BadArgument(**ended)
    return RunRecord.model_validate(ended)


def _worker(config: dict[str, Any]) -> Any:  # Any: ray expects None, and passes on what comes
    """What every worker process runs: a run record as JSON values, or the argument that cannot work and why."""
    order = Order.model_validate(config["order"])
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

    def latest(self) -> State | None:
        held = ray_train.get_checkpoint()
        if held is None:
            return None
        with held.as_directory() as folder:
            state: State = torch.load(Path(folder) / FILE, weights_only=True, map_location="cpu")
            return state

    def save(self, state: State) -> None:
        with tempfile.TemporaryDirectory() as folder:
            if self.rank == 0:
                torch.save(state, Path(folder) / FILE)
            held = ray_train.Checkpoint.from_directory(folder) if self.rank == 0 else None
            ray_train.report({"step": state["step"]}, checkpoint=held)  # a barrier: every rank reports at the same steps

    def tell(self, news: str) -> None:
        self._mailbox.put_nowait.remote(news)
