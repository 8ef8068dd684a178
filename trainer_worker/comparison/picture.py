"""The picture of a comparison: loss and accuracy of every arm, with jumps marked where there are any."""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from trainer_worker.comparison.summary import Summary, smooth
from trainer_worker.training.records import AVERAGED, RunRecord, is_average

COLOURS = ("#64748b", "#ea580c", "#0d9488", "#7c3aed", "#be123c")
"""The plain arm is grey: it is what the others are measured against."""
INK, FAINT = "#1e293b", "#cbd5e1"


def draw(summary: Summary, path: Path) -> None:
    """Write the picture as PNG."""
    figure = Figure(figsize=(13, 5.6), dpi=140, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    loss, accuracy = figure.subplots(1, 2)
    colours = _colours(summary)
    for name, colour in colours.items():
        runs = [run for run in summary.runs if run.arm == name]
        _curves(loss, runs, "validation", "loss", colour=colour)
        _curves(accuracy, runs, "test", "accuracy", colour=colour)
    _style(loss, "Validation loss")
    _style(accuracy, "Test accuracy")
    accuracy.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    _zoom(loss, _values(summary.runs, "validation", "loss"), shown=(0, 0.95))
    _zoom(accuracy, _values(summary.runs, "test", "accuracy"), shown=(0.05, 1))
    for name, colour in colours.items():
        for axes in (loss, accuracy):
            _jumps(axes, [run for run in summary.runs if run.arm == name], colour=colour)
    _target(loss if summary.config.train.target is None else accuracy, summary)
    figure.legend(*loss.get_legend_handles_labels(), loc="outside upper right", ncols=5, frameon=False, fontsize=10.5)
    figure.suptitle(f"{summary.name}: {summary.headline}", x=0.012, ha="left", fontsize=13, fontweight="bold", color=INK)
    figure.savefig(path)


def _colours(summary: Summary) -> dict[str, str]:
    """By arm; an average has the colour of what it is the average of."""
    names = dict.fromkeys(arm.arm.removesuffix(AVERAGED) for arm in summary.arms)
    found = dict(zip(names, COLOURS, strict=False))
    return {arm.arm: colour for arm in summary.arms if (colour := found.get(arm.arm.removesuffix(AVERAGED)))}


def _values(runs: Sequence[RunRecord], split: str, metric: str) -> list[float]:
    return [getattr(getattr(evaluation, split), metric) for run in runs for evaluation in run.evaluations]


def _curves(axes: Axes, runs: Sequence[RunRecord], split: str, metric: str, *, colour: str) -> None:
    """Every evaluation faintly, the smoothed median over the seeds boldly; only that of averages, dashed."""
    averaged = is_average(runs[0].arm)
    steps = [evaluation.step for evaluation in runs[0].evaluations]
    rows = [_values([run], split, metric) for run in runs]
    for row in () if averaged else rows:
        axes.plot(steps, row, color=colour, alpha=0.28, linewidth=0.9)
    middle = [median(column) for column in zip(*(smooth(row) for row in rows), strict=True)]
    style: Any = (0, (4, 1.5)) if averaged else "-"
    axes.plot(steps, middle, color=colour, linewidth=1.6 if averaged else 2.2, label=runs[0].arm, linestyle=style)


def _zoom(axes: Axes, values: Sequence[float], *, shown: tuple[float, float]) -> None:
    """Show what lies between two quantiles: the first fall would hide how arms differ where it is flat."""
    ranked = sorted(filter(math.isfinite, values))
    if not ranked:  # all runs diverged
        return
    low, high = (ranked[min(len(ranked) - 1, int(share * len(ranked)))] for share in shown)
    margin = 0.08 * (high - low) or 0.01
    axes.set_ylim(low - margin, high + 2 * margin)


def _jumps(axes: Axes, runs: Sequence[RunRecord], *, colour: str) -> None:
    """A line where predicted weights were loaded at once, with the horizon above it."""
    jumps = {event["step"]: event["horizon"] for run in reversed(runs) for event in run.events if event["outcome"] == "jumped"}
    top = axes.get_xaxis_transform()
    for step, horizon in sorted(jumps.items()):
        axes.axvline(step, color=colour, alpha=0.45, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
        if len(jumps) <= 25:
            axes.annotate(
                str(horizon), (step, 0.965), xycoords=top, ha="center", va="top", fontsize=7.5, color=colour,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.8},
            )  # fmt: skip


def _target(axes: Axes, summary: Summary) -> None:
    target = median(figures.target for figures in summary.figures if not is_average(figures.arm))
    if math.isinf(target):  # the plain runs diverged
        return
    axes.axhline(target, color=INK, linewidth=0.8, linestyle=(0, (1, 2)))
    axes.annotate("target", (0.006, target), xycoords=axes.get_yaxis_transform(), va="bottom", fontsize=8, color=INK)


def _style(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.set_xlabel("step", color=INK)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    axes.margins(x=0.01)
    axes.grid(axis="y", color=FAINT, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=9)
