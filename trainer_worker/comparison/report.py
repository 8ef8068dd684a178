"""The report of a comparison: `summary.json`, `report.png`, `report.html` and a table."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from trainer_worker.comparison.summary import ArmFigures, Summary
from trainer_worker.training.records import is_average


def write(summary: Summary) -> tuple[Path, Path, Path]:
    """Write `summary.json`, `report.png` and `report.html` into the output folder; their paths."""
    from trainer_worker.comparison import page
    from trainer_worker.comparison.picture import draw

    folder = summary.config.output.folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(summary.model_dump_json(indent=1), encoding="utf-8")
    draw(summary, folder / "report.png")
    return folder / "summary.json", folder / "report.png", page.write([summary], folder / "report.html")


def show(summary: Summary, console: Console) -> None:
    """Print the table."""
    title = f"{summary.headline}, {summary.wall_s:.0f} s in all"
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold", box=None, pad_edge=False)
    for column in ("arm", "steps to target", "time to target", "test loss", "test accuracy", "forecasts", "ms a step", "run"):
        table.add_column(column, justify="left" if column == "arm" else "right")
    for arm in summary.arms:
        table.add_row(*_row(arm))
    console.print(table)
    targets = sorted(figures.target for figures in summary.figures if not is_average(figures.arm))
    reached = f"{targets[0]:.3f}" if targets[0] == targets[-1] else f"{targets[0]:.3f} to {targets[-1]:.3f} by seed"
    averaged = len(targets) < len(summary.figures)
    rule = "" if summary.config.train.target else ", the plain run's best" + (" (of averages: its average's)" if averaged else "")
    console.print(
        f"[dim]target: {summary.metric} {reached}{rule}; test figures at the step that is best on validation; medians over seeds[/]"
    )
    shadow = summary.config.nowcast is not None and summary.config.nowcast.mode == "shadow"
    for arm in summary.arms:
        if shadow and arm.skill:  # of a forecast that pushes only the direction counts
            worth = ", ".join(f"{name} {value:+.2f}" for name, value in arm.skill.items())
            console.print(f"[dim]{arm.arm}: skill of the forecasts (0: no change, 1: perfect): {worth}[/]")
    for figures in summary.figures:
        for reason, times in figures.reasons.items():
            console.print(f"[yellow]{figures.arm}, seed {figures.seed}: {times} nowcast(s) skipped: {reason}[/]")


def _row(arm: ArmFigures) -> tuple[str, ...]:
    steps = "not reached" if arm.steps_to_target is None else f"{arm.steps_to_target:,.0f}"
    if arm.fewer_steps:
        steps += f" ({-arm.fewer_steps:+.0%})"
    if arm.reached < arm.seeds:
        steps += f" [{arm.reached} of {arm.seeds}]"
    seconds = "-" if arm.s_to_target is None else f"{arm.s_to_target:,.0f} s"
    if arm.less_time:
        seconds += f" ({-arm.less_time:+.0%})"
    nowcasts = ", ".join(f"{count} {outcome}" for outcome, count in arm.nowcasts.items()) or "-"
    return (
        arm.arm,
        steps,
        seconds,
        f"{arm.best.loss:.4f}",
        f"{arm.best.accuracy:.2%}",
        nowcasts,
        f"{arm.step_s * 1000:.1f}",
        f"{arm.wall_s:.0f} s",
    )
