"""Comparisons: the same job without and with nowcasts, same seeds and batches; and single runs, on the same path."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

from trainer_worker.comparison.summary import Summary, summarise
from trainer_worker.endpoints.server import is_file
from trainer_worker.names import job_id
from trainer_worker.training.config import Config
from trainer_worker.training.records import Order, RunRecord, begin, finished, keep


def compare(config: Config, *, console: Console, resume: bool = False, plain: bool = True) -> Summary:
    """Train every seed without and with nowcasts, one run after the other, so that each has the whole machine; only as the
    configuration says if not `plain`. With `resume`, finished runs are read back and unfinished ones go on from their newest
    checkpoint; without, they are deleted. Raises BadArgument or CommandFailed.
    """
    from trainer_worker.tasks.task import load_task

    started = time.perf_counter()
    arms = [*([config.model_copy(update={"nowcast": None})] if plain else []), config]
    job = os.environ.get("NOWCAST_JOB", config.output.folder.name)
    # ids unlike any other run's, so that a shared server never mixes two of them up
    runs = [Order(config=arm, seed=seed, job=job_id(job, arm.arm, str(seed))) for seed in config.train.seeds for arm in arms]
    config.output.folder.mkdir(parents=True, exist_ok=True)
    load_task(config.task.name, data=config.task.data)  # fetched once here, read from disk by the workers
    with _server_for(config) as reached, _workers(config) as train:
        begin(runs, resume=resume)
        records = [finished(each) or _train(each.model_copy(update=reached), train, console) for each in runs]
    return summarise(config, records, wall_s=time.perf_counter() - started)


def _train(order: Order, train: Callable[..., RunRecord], console: Console) -> RunRecord:
    def listen(news: str) -> None:
        console.print(f"{order.name}: {news}", markup=False, highlight=False, soft_wrap=True)

    started = time.perf_counter()
    record = train(order, listen=listen).model_copy(update={"wall_s": time.perf_counter() - started})
    keep(order, record)
    return record


@contextmanager
def _server_for(config: Config) -> Iterator[dict[str, str | None]]:
    """Address and token of the server the configuration asks for, None if it needs none or embeds it; one's own takes no token."""
    table = config.nowcast
    if table is None or table.server == "embedded":
        yield {"server": None, "token": None}
    elif table.server == "own":
        from trainer_worker.training.own_server import own_server

        checkpoint = f"{table.name}={table.forecaster}" if is_file(table.forecaster) else None
        with own_server(log=config.output.folder / "server.log", checkpoint=checkpoint) as url:
            yield {"server": url, "token": None}
    else:
        yield {"server": table.server, "token": os.environ.get("NOWCAST_TOKEN")}


@contextmanager
def _workers(config: Config) -> Iterator[Callable[..., RunRecord]]:
    """The function that trains an order, on Ray or in this process."""
    if config.workers.count == 0:
        from trainer_worker.training.loop import train_in_process

        yield train_in_process
    else:
        from trainer_worker.training.ray_train import cluster, train_on_ray

        with cluster(config.workers):
            yield train_on_ray
