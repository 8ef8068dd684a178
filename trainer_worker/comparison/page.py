"""The report of one or more comparisons as one HTML file that loads nothing: it can be mailed, and opened in ten years."""

import html
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

from pydantic import ValidationError

from trainer_worker.comparison.chart import COLOURS, Line, chart
from trainer_worker.comparison.summary import Summary, smooth
from trainer_worker.comparison.verdict import Verdict, verdicts
from trainer_worker.errors import CommandFailed
from trainer_worker.training.records import AVERAGED, RunRecord, is_average

STYLE: Final = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")
WORDS: Final = {
    "helped": "Yes: fewer steps with every seed.",
    "did not help": "No: no seed got there sooner.",
    "no clear difference": "Not clearly: seeds disagree.",
    "one seed": "One seed only: an indication, not an answer.",
    "few seeds": "Two seeds only: an indication, not an answer.",
}


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


def write(summaries: Sequence[Summary], path: Path) -> Path:
    """Write the report."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(summaries), encoding="utf-8")
    return path


def render(summaries: Sequence[Summary]) -> str:
    """The report, as HTML."""
    title = summaries[0].name if len(summaries) == 1 else f"{len(summaries)} comparisons"
    body = "".join(_section(summary) for summary in summaries)
    top = _overview(summaries) if len(summaries) > 1 else ""
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
    head += """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">"""
    head += f"<title>{_text(title)}: nowcast report</title><style>{STYLE}</style>"
    heading = f"<h1>Did nowcasts help? {_text(title)}</h1>"
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{heading}{top}{body}</body></html>\n'


def _overview(summaries: Sequence[Summary]) -> str:
    rows = [
        [summary.name, verdict.arm, WORDS[verdict.word], verdict.helped] for summary in summaries for verdict in verdicts(summary)
    ]  # fmt: skip
    return _table(["comparison", "arm", "did it help", "how much"], rows)


def _section(summary: Summary) -> str:
    found = verdicts(summary)
    said = "".join(_verdict(verdict) for verdict in found) or "<p>One arm alone: there is nothing to compare it with.</p>"
    return (
        f"<section><h2>{_text(summary.name)}: {_text(summary.headline)}</h2>{said}"
        f'<h3>Curves</h3><p class="quiet">Bold: the median over seeds, smoothed over five evaluations. Faint: each run. '
        f"Dashed: averages of the weights.</p>"
        f'<div class="charts">{_charts(summary)}</div>'
        f"<h3>Figures</h3>{_figures(summary)}"
        f"<h3>How it was made</h3>{_settings(summary)}</section>"
    )


def _verdict(verdict: Verdict) -> str:
    trust = "".join(f"<li>{_text(each)}</li>" for each in verdict.trust)
    return (
        f'<div class="verdict"><b class="word">{_text(verdict.arm)}: {_text(WORDS[verdict.word])}</b><dl>'
        f"<dt>Did it help?</dt><dd>{_text(verdict.helped)}</dd><dt>At what cost?</dt><dd>{_text(verdict.cost)}</dd>"
        f"<dt>Can I trust it?</dt><dd><ul>{trust}</ul></dd></dl></div>"
    )


def _charts(summary: Summary) -> str:
    target = median(figures.target for figures in summary.figures if not is_average(figures.arm))
    of_loss, of_accuracy = (target, None) if summary.config.train.target is None else (None, target)
    drawn = (
        ("step", "step", "validation", "loss", of_loss),
        ("train_s", "seconds of training", "validation", "loss", of_loss),
        ("step", "step", "test", "accuracy", of_accuracy),
    )
    return "".join(
        chart(_lines(summary, name, split, metric), across=across, up=f"{split.capitalize()} {metric}", target=goal)
        for name, across, split, metric, goal in drawn
    )


def _lines(summary: Summary, across: str, split: str, metric: str) -> list[Line]:
    """Each run faintly, the median of each arm boldly."""
    names = list(dict.fromkeys(arm.arm.removesuffix(AVERAGED) for arm in summary.arms))
    lines = []
    for arm in summary.arms:
        colour = COLOURS[names.index(arm.arm.removesuffix(AVERAGED)) % len(COLOURS)]
        curves = [_curve(run, across, split, metric) for run in summary.runs if run.arm == arm.arm]
        smoothed = [smooth([y for _, y in curve]) for curve in curves]
        middle = [
            (median(x for x, _ in column), median(values))
            for column, values in zip(zip(*curves, strict=False), zip(*smoothed, strict=False), strict=False)
        ]
        averaged = is_average(arm.arm)
        lines += [Line("", curve, colour, faint=True) for curve in curves if not averaged]
        lines.append(Line(arm.arm, middle, colour, dashed=averaged))
    return lines


def _curve(run: RunRecord, across: str, split: str, metric: str) -> list[tuple[float, float]]:
    return [(getattr(each, across), getattr(getattr(each, split), metric)) for each in run.evaluations]


def _figures(summary: Summary) -> str:
    rows = []
    for arm in summary.arms:
        steps = "not reached" if arm.steps_to_target is None else f"{arm.steps_to_target:,.0f}"
        saved = "" if arm.fewer_steps is None else f"{arm.fewer_steps:+.0%}"
        reached = "–" if arm.s_to_target is None else f"{arm.s_to_target:,.1f}"
        score = [f"{arm.best.loss:.4g}", f"{arm.best.accuracy:.2%}", f"{arm.step_s * 1000:.2f}", f"{arm.wall_s:,.0f}"]
        rows.append([arm.arm, f"{arm.reached} of {arm.seeds}", steps, saved, reached, *score])
    heads = [
        "arm",
        "seeds there",
        "steps to target",
        "steps saved",
        "s to target",
        "test loss",
        "test accuracy",
        "ms a step",
        "s a run",
    ]
    runs = []
    for each in summary.figures:
        reached = "–" if each.steps_to_target is None else f"{each.steps_to_target:,}"
        losses = [f"{each.final_validation.loss:.4g}", f"{each.best.loss:.4g}"]
        runs.append([f"{each.arm}, seed {each.seed}", f"{each.target:.4g}", reached, *losses, f"{each.best_step:,}"])
    single = _table(["run", "target", "steps to target", "validation loss at the end", "test loss at its best", "best step"], runs)
    return f"{_table(heads, rows)}<details><summary>Each run</summary>{single}</details>"


def _settings(summary: Summary) -> str:
    settings = json.dumps(summary.config.model_dump(mode="json", exclude_none=True), indent=1)
    server: dict[str, Any] = summary.server or {}
    about = "".join(f"<dt>{_text(name)}</dt><dd>{_text(str(value))}</dd>" for name, value in {**summary.versions, **server}.items())
    command = f"<pre>{_text(summary.versions.get('command', ''))}</pre>"
    versions = f"<details><summary>Versions and server</summary><dl>{about}</dl></details>"
    return f"{command}{versions}<details><summary>Settings</summary><pre>{_text(settings)}</pre></details>"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f'<th scope="col">{_text(head)}</th>' for head in heads)
    body = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    table = f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll" role="region" aria-label="table" tabindex="0">{table}</div>'


def _text(value: str) -> str:
    return html.escape(value)
