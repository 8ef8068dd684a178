"""What is trained: tasks with real data, each a network, three splits, a loss and a score.

Importing this package is cheap: torch and the data are loaded with a task, not before.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer_worker.tasks.data import Dataset
    from trainer_worker.tasks.task import Task

TASKS: dict[str, str] = {
    "fm-16": "Fashion-MNIST, the paper's convnet 16-32-32 with 14,378 parameters",
    "fm-32": "Fashion-MNIST, the paper's convnet 32-64-64 with 56,394 parameters",
    "kjv-3x64": "King James Bible by characters, a GPT of 3 layers 64 wide",
}
"""What each task is, by its name."""


def load_task(name: str, *, data: Path | None = None, examples: int | None = None) -> "Task":
    """The task `name`, its data read from a folder, or found or fetched, and checked; at most so many examples in each split.

    Raises:
        KeyError: no such task.
        DataMissing: no source has its data.
    """
    from trainer_worker.tasks.bible import bible_task
    from trainer_worker.tasks.fashion import fashion_task

    makers: dict[str, Callable[[], Task]] = {
        "fm-16": lambda: fashion_task(width=16, data=data),
        "fm-32": lambda: fashion_task(width=32, data=data),
        "kjv-3x64": lambda: bible_task(layers=3, width=64, heads=4, data=data),
    }
    task = makers[name]()
    return task if examples is None else task.first(examples)


def datasets() -> "dict[str, Dataset]":
    """The data sets of tasks and examples, by name."""
    from trainer_worker.tasks import bible, diamonds, fashion

    return {dataset.name: dataset for dataset in (fashion.FASHION_MNIST, bible.KING_JAMES, diamonds.DIAMONDS)}


__all__ = ["TASKS", "datasets", "load_task"]
