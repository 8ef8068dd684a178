"""The picture of a comparison: loss and accuracy of every arm."""

import math
from collections.abc import Sequence
from statistics import median

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from trainer_worker.comparison.summary import Summary, smooth
from trainer_worker.training.records import RunRecord

COLOURS = ("#64748b", "#ea580c")  # the plain arm is grey: it is what the other is measured against
INK, FAINT = "#1e293b", "#cbd5e1"
# title, what is across, split and metric, and the quantiles shown: the first fall would hide how arms differ where it is flat
PANELS = (
    ("Validation loss", "step", "validation", "loss", (0, 0.95)),
    ("Test accuracy", "step", "test", "accuracy", (0.05, 1)),
    ("Validation loss", "train_s", "validation", "loss", (0, 0.95)),
)


def draw(summary: Summary) -> Figure:
    """Draw it; save it as PNG or SVG."""
    figure = Figure(figsize=(17, 5.4), dpi=130, facecolor="white", layout="constrained")
    panels = figure.subplots(1, len(PANELS))
    for axes, (title, across, split, metric, shown) in zip(panels, PANELS, strict=True):
        for arm, colour in zip(summary.arms, COLOURS, strict=False):
            runs = [run for run in summary.runs if run.arm == arm.arm]
            _curves(axes, [_curve(run, across, split, metric) for run in runs], arm.arm, colour)
        _zoom(axes, [y for run in summary.runs for _, y in _curve(run, across, split, metric)], shown)
        if metric == "loss":
            _target(axes, median(each.target for each in summary.figures))
        _style(axes, title, "step" if across == "step" else "seconds of training")
    panels[1].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=5, frameon=False, fontsize=10.5)
    figure.suptitle(f"{summary.name}: {summary.headline}", x=0.012, ha="left", fontsize=13, fontweight="bold", color=INK)
    return figure


def _curve(run: RunRecord, across: str, split: str, metric: str) -> list[tuple[float, float]]:
    return [(getattr(each, across), getattr(getattr(each, split), metric)) for each in run.evaluations]


def _curves(axes: Axes, curves: Sequence[Sequence[tuple[float, float]]], name: str, colour: str) -> None:
    """Every run faintly, the smoothed median over the seeds boldly."""
    for curve in curves:
        axes.plot(*zip(*curve, strict=True), color=colour, alpha=0.28, linewidth=0.9)
    across = [median(column) for column in zip(*([x for x, _ in curve] for curve in curves), strict=True)]
    up = [median(column) for column in zip(*(smooth([y for _, y in curve]) for curve in curves), strict=True)]
    axes.plot(across, up, color=colour, linewidth=2.2, label=name)


def _zoom(axes: Axes, values: Sequence[float], shown: tuple[float, float]) -> None:
    if finite := list(filter(math.isfinite, values)):  # else all runs diverged
        low, high = np.quantile(finite, shown)
        margin = 0.08 * (high - low) or 0.01
        axes.set_ylim(low - margin, high + 2 * margin)


def _target(axes: Axes, target: float) -> None:
    if math.isinf(target):  # the plain runs diverged
        return
    axes.axhline(target, color=INK, linewidth=0.8, linestyle=(0, (1, 2)))
    axes.text(0.006, target, "target", transform=axes.get_yaxis_transform(), va="bottom", fontsize=8, color=INK)


def _style(axes: Axes, title: str, across: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.set_xlabel(across, color=INK)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda place, _: f"{place:,.0f}"))
    axes.margins(x=0.01)
    axes.grid(axis="y", color=FAINT, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=9)
