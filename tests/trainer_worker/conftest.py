"""Servers for the worker's tests."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch
from faulty_server import FaultyServer
from server_process import CHECKPOINTS, ServerProcess

from trainer_worker.tasks.data import DataMissing
from trainer_worker.tasks.task import Task, load_task


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small gain nothing from a second thread, and on a busy machine they wait for it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def faulty() -> Iterator[FaultyServer]:
    """A server that breaks as told."""
    with closing(FaultyServer()) as server:
        yield server


@pytest.fixture(scope="session")
def server() -> Iterator[ServerProcess]:
    """One for all tests that leave it alive, with as many threads as this process."""
    folder = Path(__file__).resolve().parents[3] / "shared" / "checkpoints"
    weights = [option for name in CHECKPOINTS.values() for option in ("--checkpoint", str(folder / name)) if folder.is_dir()]
    process = ServerProcess("--threads", "1", *weights)
    process.start()
    yield process
    process.kill()


@pytest.fixture(scope="session")
def fashion() -> Task:
    """FM-16 with the real pictures."""
    try:
        return load_task("fm-16")
    except DataMissing as missing:
        pytest.skip(str(missing))


@pytest.fixture
def small_fashion(fashion: Task, monkeypatch: pytest.MonkeyPatch) -> Task:
    """FM-16 with few real pictures, for runs in this process: reading 70,000 takes longer than they do."""
    small = Task(fashion.build, *(split.first(64) for split in (fashion.train, fashion.validation, fashion.test)))
    for place in ("trainer_worker.training.loop.load_task", "trainer_worker.tasks.task.load_task"):
        monkeypatch.setattr(place, lambda *_, **__: small)
    return small
