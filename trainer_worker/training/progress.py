"""Progress on the terminal: a bar for each run, a line for each event."""

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from trainer_worker.events import Event
from trainer_worker.training.records import Order


def bars(console: Console) -> Progress:
    """Where runs are shown, while it is open."""
    return Progress(
        TextColumn("{task.description}", style="bold", markup=False),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[score]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


class RunBar:
    """The bar of one run; call it with the run's news."""

    def __init__(self, shown: Progress, order: Order) -> None:
        self._bars, self._name = shown, order.name
        self._trouble = ""
        self._bar: TaskID = shown.add_task(order.name, total=order.config.train.steps, score="starting")

    def __call__(self, news: dict[str, Any]) -> None:
        if "step" in news:
            self._bars.update(self._bar, completed=news["step"])
        if evaluation := news.get("evaluation"):
            validation = evaluation["validation"]
            self._bars.update(self._bar, score=f"val loss {validation['loss']:.4f}, accuracy {validation['accuracy']:.1%}")
        if event := news.get("event"):
            self._tell(Event(**event))

    def _tell(self, event: Event) -> None:
        """Print what is news: not every push, nor the same trouble at every boundary."""
        news = event.kind != "nowcast" or event.outcome == "jumped" or (event.reason and event.reason != self._trouble)
        if event.kind == "nowcast":
            self._trouble = event.reason
        if news:
            style = "yellow" if event.reason else None
            self._bars.console.print(f"  {self._name}: {event}", style=style, highlight=False, markup=False)
