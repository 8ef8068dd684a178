"""A small Ray cluster on this machine: quiet, little memory, workers tuned for torch on few cores."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 200 * 1024**2
"""Checkpoints go through files and gradients through gloo; the store only carries orders and progress."""

ATTEMPTS = 3

WORKER_ENVIRONMENT = {
    # glibc gives large blocks back to the system at once; a convnet step then spends half its time in page faults
    "MALLOC_MMAP_THRESHOLD_": "1000000000",
    "MALLOC_TRIM_THRESHOLD_": "10000000000",
}


def start_local_cluster(*, cpus: int | None = None) -> None:
    """Start a Ray cluster on this machine and connect to it; `ray.shutdown()` ends both.

    Args:
        cpus: that Ray may hand out; by default all of the machine's.
    """
    import ray

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
                _start(cpus or os.cpu_count() or 1)
            except Exception as error:
                # Ray's node gives its own helper processes a fixed 15 s to import; on a machine that is busy it dies of that.
                if attempt == ATTEMPTS or "timed out during startup" not in str(error):
                    raise
                logger.warning("Ray did not start in time, trying again")
                ray.shutdown()
            else:
                return


def _start(cpus: int) -> None:
    import ray

    ray.init(
        address="local",  # never a cluster that happens to run on this machine
        num_cpus=cpus,
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


def join_cluster(address: str) -> None:
    """Connect to a running Ray cluster.

    Raises:
        ConnectionError: no cluster at the address.
    """
    import ray

    runtime_env = {"env_vars": WORKER_ENVIRONMENT}
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, runtime_env=runtime_env)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
