"""The report of a comparison: `summary.json`, `report.png`, a table, and `report.html`, which loads nothing."""

import html
import io
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any, Final

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from trainer_worker.comparison.summary import ArmFigures, Summary
from trainer_worker.comparison.verdict import Verdict, verdicts
from trainer_worker.errors import CommandFailed
from trainer_worker.training.records import is_average

WORDS: Final = {
    "helped": "Yes: fewer steps with every seed.",
    "did not help": "No: no seed got there sooner.",
    "no clear difference": "Not clearly: seeds disagree.",
    "one seed": "One seed only: an indication, not an answer.",
    "few seeds": "Two seeds only: an indication, not an answer.",
}
HEADS: Final = ("arm", "steps to target", "time to target", "test loss", "test accuracy", "forecasts", "ms a step", "run")
RUN_HEADS: Final = ("run", "target", "steps to target", "validation loss at the end", "test loss at its best", "best step")


def write(summary: Summary) -> tuple[Path, Path, Path]:
    """Write `summary.json`, `report.png` and `report.html` into the output folder, and TensorBoard events; the three paths."""
    from trainer_worker.comparison.picture import draw
    from trainer_worker.comparison.tensorboard import write_events

    folder = summary.config.output.folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(summary.model_dump_json(indent=1), encoding="utf-8")
    draw(summary).savefig(folder / "report.png")
    write_events(summary, folder / "events")
    return folder / "summary.json", folder / "report.png", write_page([summary], folder / "report.html")


def read(place: Path) -> Summary:
    """The summary in a results folder, or the file itself.

    Raises:
        CommandFailed: there is none, or it is of another version.
    """
    path = place / "summary.json" if place.is_dir() else place
    try:
        return Summary.model_validate_json(path.read_bytes())
    except OSError as error:
        raise CommandFailed(f"{place}: no results of a comparison ({error.strerror})") from error
    except ValidationError as error:
        raise CommandFailed(f"{path} is not a summary of this version: {error.errors()[0]['msg']}") from error


def show(summary: Summary, console: Console) -> None:
    """Print the table."""
    title = f"{summary.headline}, {summary.wall_s:.0f} s in all"
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold", box=None, pad_edge=False)
    for column in HEADS:
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
    """Write one HTML file about one or more comparisons: it can be mailed, and opened in ten years. `training_map` is an SVG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = training_map.read_text(encoding="utf-8") if training_map else ""
    path.write_text(render(summaries, training_map=picture), encoding="utf-8")
    return path


def render(summaries: Sequence[Summary], *, training_map: str = "") -> str:
    """The page; it runs no script, whatever is in the map."""
    title = summaries[0].name if len(summaries) == 1 else f"{len(summaries)} comparisons"
    body = "".join(_section(summary) for summary in summaries)
    rows = [[each.name, found.arm, WORDS[found.word], found.helped] for each in summaries for found in verdicts(each)]
    top = _table(["comparison", "arm", "did it help", "how much"], rows) if len(summaries) > 1 else ""
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
    head += """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">"""
    head += f"<title>{html.escape(title)}: nowcast report</title><style>{style}</style>"
    heading = f"<h1>Did nowcasts help? {html.escape(title)}</h1>"
    if training_map:
        body += f"<section><h2>Map of training</h2><figure>{training_map[training_map.index('<svg') :]}</figure></section>"
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{heading}{top}{body}</body></html>\n'


def _section(summary: Summary) -> str:
    found = "".join(_verdict(verdict) for verdict in verdicts(summary))
    return (
        f"<section><h2>{html.escape(f'{summary.name}: {summary.headline}')}</h2>"
        f"{_what(summary) + found if found else '<p>One arm alone: there is nothing to compare it with.</p>'}"
        f'<h3>Curves</h3><p class="quiet">Bold: the median over seeds, smoothed over five evaluations. Faint: each run. '
        f"Dashed: averages of the weights.</p><figure>{_picture(summary)}</figure>"
        f"<h3>Figures</h3>{_table(HEADS, [_row(arm) for arm in summary.arms])}"
        f"<details><summary>Each run</summary>{_runs(summary)}</details>{_layers(summary)}"
        f"<h3>How it was made</h3>{_settings(summary)}</section>"
    )


def _what(summary: Summary) -> str:
    """Say what the arms are."""
    plain, *others = (html.escape(arm.arm) for arm in summary.arms if not is_average(arm.arm))
    told = f"<b>{plain}</b> is the job without nowcasts, <b>{', '.join(others)}</b> the same with them."
    averaged = (
        "<b>Averaged</b>: an average of the run's weights is judged in place of the weights."
        if summary.config.train.average
        else ""
    )
    return f"<p>{told} {averaged}</p>"


def _verdict(verdict: Verdict) -> str:
    trust = "".join(f"<li>{html.escape(each)}</li>" for each in verdict.trust)
    return (
        f'<div class="verdict"><b class="word">{html.escape(f"{verdict.arm}: {WORDS[verdict.word]}")}</b><dl>'
        f"<dt>Did it help?</dt><dd>{html.escape(verdict.helped)}</dd><dt>At what cost?</dt><dd>{html.escape(verdict.cost)}</dd>"
        f"<dt>Can I trust it?</dt><dd><ul>{trust}</ul></dd></dl></div>"
    )


def _picture(summary: Summary) -> str:
    """As SVG, without the prolog of a file."""
    from trainer_worker.comparison.picture import draw

    file = io.StringIO()
    draw(summary).savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()[file.getvalue().index("<svg") :]


def _runs(summary: Summary) -> str:
    rows = []
    for each in summary.figures:
        reached = "–" if each.steps_to_target is None else f"{each.steps_to_target:,}"
        losses = [f"{each.final_validation.loss:.4g}", f"{each.best.loss:.4g}"]
        rows.append([f"{each.arm}, seed {each.seed}", f"{each.target:.4g}", reached, *losses, f"{each.best_step:,}"])
    return _table(RUN_HEADS, rows)


def _layers(summary: Summary) -> str:
    """Which layers can be forecast: the mean of all runs that were pushed."""
    made = [layers for run in summary.runs if run.nowcast and (layers := run.nowcast.get("layers"))]
    if not made:
        return ""
    means = {name: mean(layers.get(name, 0.0) for layers in made) for name in made[0]}
    widest = max(0.1, *(abs(value) for value in means.values()))
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{_bar(value / widest)}</td><td>{value:+.2f}</td></tr>"
        for name, value in means.items()
    )
    told = "Mean coherence of each layer's pushes: above 0 training went on as the forecast pushed, below it took pushes back."
    return f'<h3>Layers</h3><p class="quiet">{told}</p><table class="layers">{rows}</table>'


def _bar(share: float) -> str:
    """From the middle, to the right or the left."""
    rect = f'<rect x="{100 * min(share, 0):.1f}" width="{100 * abs(share):.1f}" height="10" opacity="{0.9 if share > 0 else 0.4}"/>'
    return f'<svg viewBox="-100 0 200 10">{rect}<path d="M0 0V10" stroke="currentColor"/></svg>'


def _settings(summary: Summary) -> str:
    settings = json.dumps(summary.config.model_dump(mode="json", exclude_none=True), indent=1)
    about: dict[str, Any] = {**summary.versions, **(summary.server or {})}
    told = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(str(value))}</dd>" for name, value in about.items())
    return (
        f"<pre>{html.escape(summary.versions.get('command', ''))}</pre>"
        f"<details><summary>Versions and server</summary><dl>{told}</dl></details>"
        f"<details><summary>Settings</summary><pre>{html.escape(settings)}</pre></details>"
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f'<th scope="col">{html.escape(head)}</th>' for head in heads)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    table = f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll" role="region" aria-label="table" tabindex="0">{table}</div>'
