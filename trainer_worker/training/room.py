"""Warn when a Ray cluster has no room for a run's workers (Ray would wait silently), or has idle GPUs."""

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from ray import available_resources, cluster_resources
from ray.util import placement_group_table

logger = logging.getLogger(__name__)

PATIENCE_S: Final = 10.0
POLL_S: Final = 1.0


@contextmanager
def warned_without_room(workers: int, each: Mapping[str, float]) -> Iterator[None]:
    """While the block runs, log a warning whenever so many workers have waited `PATIENCE_S` for a place on the connected cluster.

    Also warn if they take no GPU and the cluster has free ones.

    Args:
        workers: that Ray Train is to start; the least, if their number is elastic.
        each: resources of one.
    """
    if idle := _idle_gpus(each):
        logger.warning("%s", idle)
    over = threading.Event()

    def watch() -> None:
        since = time.monotonic()
        told = False
        while not over.wait(POLL_S):
            if not _waits(workers, each):
                since, told = time.monotonic(), False
            elif not told and time.monotonic() - since > PATIENCE_S:
                logger.warning("%s", _shortage(workers, each))
                told = True

    thread = threading.Thread(target=watch, name="nowcast-room", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _waits(workers: int, each: Mapping[str, float]) -> bool:
    """Has Ray Train asked for the workers' places, and not got them?"""
    for group in placement_group_table().values():
        bundles = list(group["bundles"].values())
        if group["state"] == "PENDING" and len(bundles) >= workers and all(bundle == dict(each) for bundle in bundles):
            return True
    return False


def _idle_gpus(each: Mapping[str, float]) -> str | None:
    free = _resources()[0].get("GPU", 0)
    if each.get("GPU") or not free:
        return None
    return f"training on CPUs while {free:g} GPUs of the cluster are free: submit with --gpus 1, or set workers.gpus_per_worker"


def _shortage(workers: int, each: Mapping[str, float]) -> str:
    free, there = _resources()
    lines = [
        f"{name}: {workers} x {amount:g} asked for, {free.get(name, 0):g} of {there.get(name, 0):g} free"
        for name, amount in each.items()
    ]
    return f"the workers wait for room on the Ray cluster ({'; '.join(lines)}): ask for fewer, or wait for other jobs to end"


def _resources() -> tuple[dict[str, float], dict[str, float]]:
    """What is free on the cluster, and what there is."""
    return available_resources(), cluster_resources()  # type: ignore[no-untyped-call]  # ray leaves them unannotated
