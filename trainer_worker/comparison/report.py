"""The report of a comparison: `summary.json`, `report.png`, a table, and `report.html`, which loads nothing."""

import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from trainer_worker.comparison.summary import METRIC, ArmFigures, RunFigures, Summary, Verdict
from trainer_worker.errors import CommandFailed

HEADS: Final = ("arm", "steps to target", "time to target", "test loss", "test accuracy", "forecasts", "ms a step", "run")
RUN_HEADS: Final = ("run", "target", "steps to target", "validation loss at the end", "test loss at its best", "best step")


def write(summary: Summary) -> tuple[Path, Path, Path]:
    """Write `summary.json`, `report.png` and `report.html` into the output folder, and TensorBoard events; the three paths."""
    from trainer_worker.comparison.picture import draw

    folder = summary.config.output.folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(summary.model_dump_json(indent=1), encoding="utf-8")
    draw(summary).savefig(folder / "report.png")
    write_events(summary, folder / "events")
    return folder / "summary.json", folder / "report.png", write_page([summary], folder / "report.html")


def read(place: Path) -> Summary:
    """The summary in a results folder, or the file itself. Raises `CommandFailed`: there is none, or it is of another version."""
    path = place / "summary.json" if place.is_dir() else place
    try:
        return Summary.model_validate_json(path.read_bytes())
    except OSError as error:
        raise CommandFailed(f"{place}: no results of a comparison ({error.strerror})") from error
    except ValidationError as error:
        raise CommandFailed(f"{path} is not a summary of this version: {error.errors()[0]['msg']}") from error


def show(summary: Summary, console: Console) -> None:
    title = f"{summary.headline}, {summary.wall_s:.0f} s in all"
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold", box=None, pad_edge=False)
    for column in HEADS:
        table.add_column(column, justify="left" if column == "arm" else "right")
    for arm in summary.arms:
        table.add_row(*_row(arm))
    console.print(table)
    targets = sorted(figures.target for figures in summary.figures)
    reached = f"{targets[0]:.3f}" if targets[0] == targets[-1] else f"{targets[0]:.3f} to {targets[-1]:.3f} by seed"
    rule = "the plain run's best; test figures at the step that is best on validation; medians over seeds"
    console.print(f"[dim]target: {METRIC} {reached}, {rule}[/]")
    shadow = summary.config.nowcast is not None and summary.config.nowcast.mode == "shadow"
    for arm in summary.arms:
        if shadow and arm.skill:  # of a forecast that pushes only the direction counts
            worth = ", ".join(f"{name} {value:+.2f}" for name, value in arm.skill.items())
            console.print(f"[dim]{arm.arm}: skill of the forecasts (0: no change, 1: perfect): {worth}[/]")
    for run in summary.runs:
        for reason, times in run.reasons.items():
            console.print(f"[yellow]{run.arm}, seed {run.seed}: {times} nowcast(s) skipped: {reason}[/]")


def _row(arm: ArmFigures) -> tuple[str, ...]:
    """The figures of `HEADS`."""
    steps = "not reached" if arm.steps_to_target is None else f"{arm.steps_to_target:,.0f}"
    if arm.fewer_steps:
        steps += f" ({-arm.fewer_steps:+.0%})"
    if arm.reached < arm.seeds:
        steps += f" [{arm.reached} of {arm.seeds}]"
    seconds = "-" if arm.s_to_target is None else f"{arm.s_to_target:,.0f} s"
    if arm.less_time:
        seconds += f" ({-arm.less_time:+.0%})"
    nowcasts = ", ".join(f"{count} {outcome}" for outcome, count in arm.nowcasts.items()) or "-"
    score = (f"{arm.best.loss:.4f}", f"{arm.best.accuracy:.2%}")
    return (arm.arm, steps, seconds, *score, nowcasts, f"{arm.step_s * 1000:.1f}", f"{arm.wall_s:.0f} s")


def write_page(summaries: Sequence[Summary], path: Path, *, training_map: Path | None = None) -> Path:
    """Write one HTML file about one or more comparisons, with nothing around it. It runs no script, whatever is in names or in the
    `training_map`, an SVG.
    """
    here = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    text = here.get_template("report.html").render(
        title=summaries[0].name if len(summaries) == 1 else f"{len(summaries)} comparisons",
        style=Markup(Path(__file__).with_name("report.css").read_text(encoding="utf-8")),  # noqa: S704 -- the package's own
        comparisons=[_comparison(summary) for summary in summaries],
        heads=HEADS,
        run_heads=RUN_HEADS,
        training_map=_svg(training_map.read_text(encoding="utf-8")) if training_map else "",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def _comparison(summary: Summary) -> dict[str, Any]:
    """What the page says of one."""
    from trainer_worker.comparison.picture import draw

    file = io.StringIO()
    draw(summary).savefig(file, format="svg", metadata={"Date": None})
    return {
        "summary": summary,
        "verdict": Verdict(summary) if len(summary.arms) > 1 else None,
        "picture": _svg(file.getvalue()),
        "rows": [_row(arm) for arm in summary.arms],
        "runs": [_run(each) for each in summary.figures],
        "layers": _layers(summary),
        "settings": json.dumps(summary.config.model_dump(mode="json", exclude_none=True), indent=1),
    }


def _svg(text: str) -> Markup:
    """A picture without the prolog of a file; ValueError if it is none. The page's policy keeps what is in it from running."""
    _, begins, rest = text.partition("<svg")
    if not begins:
        raise ValueError("the map of training has to be an SVG picture")
    return Markup(begins + rest)  # noqa: S704


def _run(each: RunFigures) -> list[str]:
    """The figures of `RUN_HEADS`."""
    reached = "–" if each.steps_to_target is None else f"{each.steps_to_target:,}"
    losses = [f"{each.final_validation.loss:.4g}", f"{each.best.loss:.4g}"]
    return [f"{each.arm}, seed {each.seed}", f"{each.target:.4g}", reached, *losses, f"{each.best_step:,}"]


def _layers(summary: Summary) -> list[tuple[str, float, float]]:
    """Which layers can be forecast: name, the mean coherence of all runs that were pushed, and the width of its bar."""
    made = [layers for run in summary.runs if run.nowcast and (layers := run.nowcast.get("layers"))]
    means = {name: mean(layers.get(name, 0.0) for layers in made) for name in (made[0] if made else ())}
    widest = max([0.1, *map(abs, means.values())])
    return [(name, value, round(100 * value / widest, 1)) for name, value in means.items()]


def write_events(summary: Summary, folder: Path) -> None:
    """Write every run as TensorBoard events into a folder of its own, anew; TensorBoard's relative time is seconds of training."""
    from tensorboardX import SummaryWriter

    shutil.rmtree(folder, ignore_errors=True)
    for run in summary.runs:
        with SummaryWriter(str(folder / f"{run.arm}-seed{run.seed}")) as events:
            for each in run.evaluations:
                at = {"global_step": each.step, "walltime": each.train_s}
                events.add_scalar("loss/train", each.train_loss, **at)
                for split in ("validation", "test"):
                    score = getattr(each, split)
                    events.add_scalar(f"loss/{split}", score.loss, **at)
                    events.add_scalar(f"accuracy/{split}", score.accuracy, **at)
            for event in run.events:
                if event["kind"] == "nowcast":
                    events.add_scalar("nowcast/used", float(event["outcome"] in {"glided", "jumped"}), event["step"])
