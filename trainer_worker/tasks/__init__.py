"""What is trained by configuration, and the data sets of tasks, examples and benchmarks.

Importing this package is cheap: torch and the data are loaded with a task, not before.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer_worker.tasks.task import Task

TASKS: dict[str, int] = {"fm-16": 16, "fm-32": 32}
"""Fashion-MNIST with the NiNo paper's convnets, by the width of their first layer: 14,378 and 56,394 parameters."""


def load_task(name: str, *, data: Path | None = None, examples: int | None = None) -> "Task":
    """The task `name`, its data read from a folder, or found or fetched, and checked; at most so many examples in each split.

    Raises:
        KeyError: no such task.
        DataMissing: no source has its data.
    """
    from trainer_worker.tasks.fashion import fashion_task

    task = fashion_task(width=TASKS[name], data=data)
    return task if examples is None else task.each(lambda split: split.first(examples))


__all__ = ["TASKS", "load_task"]
