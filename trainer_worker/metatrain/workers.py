"""Who trains the studies: local processes. A study takes one core."""

import logging
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context, parent_process
from typing import Final

from trainer_worker.metatrain.collect import CollectConfig, collect_study

logger = logging.getLogger(__name__)

MALLOC: Final = {"MALLOC_MMAP_THRESHOLD_": "1000000000", "MALLOC_TRIM_THRESHOLD_": "10000000000"}
"""glibc keeps what it has: page faults otherwise double the time of a step."""


def collect_local(config: CollectConfig) -> None:
    """Train in `config.workers` processes of this machine."""
    os.environ.update(MALLOC)  # for the processes to come
    with ProcessPoolExecutor(config.workers, mp_context=get_context("spawn"), initializer=_begin) as pool:
        studies = [pool.submit(collect_study, config, number) for number in missing(config)]
        try:
            for study in as_completed(studies):
                logger.info("%s", study.result())
        except BaseException:
            pool.shutdown(cancel_futures=True)  # else it would train all that is left before it says what went wrong
            raise


def missing(config: CollectConfig) -> Iterator[int]:
    """The studies that the folder does not hold."""
    return (number for number in range(config.first, config.first + config.studies) if not config.home(number).exists())


def _begin() -> None:
    import torch

    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A pool whose process was killed would train on, unheard, what it had been handed."""
    if (parent := parent_process()) is not None:
        parent.join()
        os._exit(1)
