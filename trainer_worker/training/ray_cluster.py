"""Ray, for runs and for scripts: a cluster on this machine, Ray Train's workers, a warning where there is no room for them."""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import ray
from ray import available_resources, cluster_resources
from ray import train as ray_train
from ray.train.torch import TorchConfig, TorchTrainer

from trainer_worker.training.storage import resolve

logger = logging.getLogger(__name__)

OBJECT_STORE_BYTES: Final = 200 * 1024**2
"""Checkpoints go through files and gradients through gloo; the store only carries orders and progress."""
ATTEMPTS: Final = 3
PATIENCE_S: Final = 5.0
POLL_S: Final = 0.5

WORKER_ENVIRONMENT: Final = {
    # glibc gives large blocks back to the system at once; a convnet step then spends half its time in page faults
    "MALLOC_MMAP_THRESHOLD_": "1000000000",
    "MALLOC_TRIM_THRESHOLD_": "10000000000",
}


def start_local_cluster(*, cpus: int | None = None) -> None:
    """Start a Ray cluster on this machine, by default with all of its CPUs, and connect to it; `ray.shutdown()` ends both."""
    environment = {
        **WORKER_ENVIRONMENT,
        "RAY_USAGE_STATS_ENABLED": os.environ.get("RAY_USAGE_STATS_ENABLED", "0"),
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # workers use the installed package, not an upload of the working directory
        "RAY_worker_niceness": "0",  # training is what this cluster is for; Ray would have it yield (15) to everything else here
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    # Ray's processes inherit this process's environment as it is now: no runtime environment, so its pre-started workers serve.
    with _environment(environment):
        for attempt in range(1, ATTEMPTS + 1):
            try:
                ray.init(
                    address="local",  # never a cluster that happens to run on this machine
                    num_cpus=cpus or os.cpu_count() or 1,
                    object_store_memory=OBJECT_STORE_BYTES,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
            except Exception as error:
                # Ray's node gives its own helper processes a fixed 15 s to import; on a machine that is busy it dies of that.
                if attempt == ATTEMPTS or "timed out during startup" not in str(error):
                    raise
                logger.warning("Ray did not start in time, trying again")
                ray.shutdown()
            else:
                return


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        for name in values:
            os.environ.pop(name)
            os.environ.update({name: before[name]} if name in before else {})


def run_workers(
    function: Callable[[dict[str, Any]], Any],
    arguments: dict[str, Any],
    *,
    name: str,
    storage: str | None,
    workers: tuple[int, int],
    cpus: float = 1,
    gpus: float,
    max_failures: int,
) -> Any:
    """Call `function(arguments)` in Ray Train's workers, at least and at most so many, each with so many CPUs and GPUs; what it
    returns on rank 0. A run goes on from the newest checkpoint of its name in its storage (None: Ray's own).

    Raises:
        StorageUnusable: checkpoints cannot go there.
        ray.train.TrainingFailedError: the workers failed more often.
    """
    filesystem, path = resolve(storage) if storage else (None, None)
    least, most = workers
    each = {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
    number: Any = least if least == most else workers  # Any: ray annotates its previous API
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
    """Log a warning if the connected cluster has no room for so many workers: Ray would wait silently. Also if they take no GPU and
    some are free.
    """
    deadline = time.monotonic() + PATIENCE_S
    while (short := _shortage(workers, each)) and time.monotonic() < deadline:
        time.sleep(POLL_S)  # the places of workers that have just ended are free a moment later
    if short:
        advice = "ask for fewer, or wait for other jobs to end"
        logger.warning("the workers wait for room on the Ray cluster (%s): %s", "; ".join(short), advice)
    idle = _resources()[0].get("GPU", 0)
    if idle and not each.get("GPU"):
        advice = "submit with --gpus 1, or set workers.gpus_per_worker"
        logger.warning("training on CPUs while %g GPUs of the cluster are free: %s", idle, advice)


def _shortage(workers: int, each: Mapping[str, float]) -> list[str]:
    free, there = _resources()
    return [
        f"{name}: {workers} x {amount:g} asked for, {free.get(name, 0):g} of {there.get(name, 0):g} free"
        for name, amount in each.items()
        if workers * amount > free.get(name, 0)
    ]


def _resources() -> tuple[dict[str, float], dict[str, float]]:
    """What is free on the cluster, and what there is."""
    return available_resources(), cluster_resources()  # type: ignore[no-untyped-call]  # ray leaves them unannotated
