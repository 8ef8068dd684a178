"""From runs to tables and a picture."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

SMOOTH = 5
"""Evaluations that a validation curve is averaged over before anything is decided on it."""
TARGETS = {"fm-16": 0.895, "fm-32": 0.905}
"""The paper's, here for the share of validation pictures that are classified rightly, not smoothed."""
PICTURES = ("fm-16", "fm-32", "fm-bn", "colour", "animals")
"""Problems whose own measure is the share of right answers, as in the paper; that of the others is loss."""
RIVALS = ("adam", "adam+ema", "decay", "cosine")
"""What a nowcast is measured against: where they end."""

COLUMNS = 4
"""Of the picture."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Curve:
    """The course of one run, of its weights or of their average, on validation data.

    Args:
        run: as it was stored.
        averaged: whether it is that of the average.
        steps: (evaluations,)
        loss: (evaluations,) smoothed.
        wrong: (evaluations,) share of wrong answers, smoothed; 1 where answers are values.
    """

    run: dict[str, Any]
    averaged: bool
    steps: Floats
    loss: Floats
    wrong: Floats

    @classmethod
    def of(cls, run: dict[str, Any], *, averaged: bool) -> "Curve":
        steps, loss, right = np.array(run["curve"])[:, [0, 2, 4] if averaged else [0, 1, 3]].T
        return cls(run, averaged, steps[SMOOTH - 1 :], _smooth(loss), 1 - _smooth(right))

    @property
    def arm(self) -> str:
        return f"{self.run['arm']}{'+ema' if self.averaged else ''}"

    def first(self, measure: str, goal: float) -> float:
        """The first step at which a measure is down at a goal."""
        hits = self.steps[getattr(self, measure) <= goal]
        return float(hits[0]) if len(hits) else float("inf")

    def first_right(self, target: float) -> int | None:
        """The first evaluation with so many right answers, not smoothed."""
        return next(
            (step for step, *_, right, averaged in self.run["curve"] if (averaged if self.averaged else right) >= target), None
        )


Arm = dict[float, list[Curve]]
"""Runs by learning rate."""
Problems = dict[str, dict[str, Arm]]
"""By problem and arm."""


def _smooth(values: Floats) -> Floats:
    return np.convolve(values, np.ones(SMOOTH) / SMOOTH, mode="valid")


def read(folder: Path) -> Problems:
    """All runs below a folder; each gives two arms, its weights and their average. Without any the program ends."""
    found: Problems = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for path in sorted(folder.rglob("*.json")):
        run = json.loads(path.read_text())
        for averaged in (False, True):
            curve = Curve.of(run, averaged=averaged)
            found[run["problem"]][curve.arm][run["lr"]].append(curve)
    if not found:
        raise SystemExit(f"there are no runs in {folder}: make some with `run`, or read bench/acceleration/results/README.md")
    return found


def summarise(problems: Problems, *, share: float = 1.0) -> list[dict[str, Any]]:
    """One row for each problem and arm at its best rate: how soon it is where each rival is after a share of its run; its end."""
    rows = []
    for problem, arms in sorted(problems.items()):
        for name, arm in sorted(arms.items()):
            steps = {measure: _to_rivals(arms, arm, measure, share) for measure in ("loss", "wrong")}
            rows.append({"problem": problem, "arm": name, "share": share, "steps": steps, **_end(arm)})
            if target := TARGETS.get(problem):
                curves = {f"{rate:g}, seed {curve.run['seed']}": curve for rate, curves in arm.items() for curve in curves}
                rows[-1]["target"] = {"right": target, "steps": {run: each.first_right(target) for run, each in curves.items()}}
    return rows


def _to_rivals(arms: dict[str, Arm], arm: Arm, measure: str, share: float) -> dict[str, float | None]:
    """Steps to where each rival is, seed by seed, both at their best rates; None where it does not get there, or shares no seed."""
    found = {}
    for rival in RIVALS:
        if rival in arms:
            goals = {curve.run["seed"]: _at(curve, measure, share) for curve in _longest(_tuned(arms[rival], measure))}
            steps = _steps(_tuned(arm, measure), measure, goals)
            found[rival] = None if steps == float("inf") or 1 in goals.values() else steps
    return found


def _tuned(arm: Arm, measure: str) -> list[Curve]:
    """The runs at the rate with the best end, of those with the most seeds: one lucky seed is no median."""
    seeds = {rate: len({curve.run["seed"] for curve in curves}) for rate, curves in arm.items()}
    tried = [curves for rate, curves in arm.items() if seeds[rate] == max(seeds.values())]
    return min(tried, key=lambda curves: _level(curves, measure))


def _longest(curves: list[Curve]) -> list[Curve]:
    return [curve for curve in curves if curve.run["steps"] == max(other.run["steps"] for other in curves)]


def _at(curve: Curve, measure: str, share: float) -> float:
    return float(getattr(curve, measure)[curve.steps <= share * curve.steps[-1]][-1])


def _level(curves: list[Curve], measure: str, share: float = 1.0) -> float:
    """Median over seeds of where the longest runs are after a share of them."""
    return median(_at(curve, measure, share) for curve in _longest(curves))


def _steps(curves: list[Curve], measure: str, goals: dict[int, float]) -> float:
    """Median over seeds of the steps to each seed's goal, for each seed in the run, of whatever length, that is there first."""
    by_seed: dict[int, float] = {}
    for curve in curves:
        seed = curve.run["seed"]
        if seed in goals:
            by_seed[seed] = min(by_seed.get(seed, float("inf")), curve.first(measure, goals[seed]))
    return median(by_seed.values()) if by_seed else float("inf")


def _end(arm: Arm) -> dict[str, Any]:
    """The figures at the rate with the lowest final loss."""
    curves = _longest(_tuned(arm, "loss"))
    rate = curves[0].run["lr"]
    runs, averaged = [curve.run for curve in curves], curves[0].averaged
    jumps = [event for run in runs for event in run.get("events", ()) if event["kind"] == "nowcast"]
    return {
        "lr": rate,
        "rates": {each: _by_seed(_longest(arm[each])) for each in sorted(arm)},
        "seeds": len({run["seed"] for run in runs}),
        "final": _level(curves, "loss"),
        "test": median(run["test"][averaged] for run in runs),
        "test_right": median(run["test_right"][averaged] for run in runs),
        "train_s": median(run["train_s"] for run in runs),
        "jumps": {outcome: sum(event["outcome"] == outcome for event in jumps) for outcome in ("accepted", "rejected", "skipped")},
    }


def _by_seed(curves: list[Curve]) -> dict[int, float]:
    """Final losses."""
    return {curve.run["seed"]: _at(curve, "loss", 1.0) for curve in curves}


def verdict(rows: list[dict[str, Any]], arm: str, *, rival: str) -> dict[str, dict[str, float | None]]:
    """What an arm's steps are relative to a rival's, less 1, for each problem: by loss, and by the problem's own measure. None
    where it never gets to where the rival is.
    """
    own = {row["problem"]: row["steps"] for row in rows if row["arm"] == rival}
    found = {}
    for row in rows:
        if row["arm"] == arm and row["problem"] in own:
            ratios = {}
            for name, measure in (("loss", "loss"), ("own", "wrong" if row["problem"] in PICTURES else "loss")):
                mine, theirs = row["steps"][measure].get(rival), own[row["problem"]][measure].get(rival)
                ratios[name] = mine / theirs - 1 if mine and theirs else None
            found[row["problem"]] = ratios
    return found


def print_verdict(rows: list[dict[str, Any]], arm: str, *, rival: str, without: Sequence[str] = ()) -> None:
    """A line for each problem, and the median over those that are not in `without`."""
    from rich.console import Console
    from rich.table import Table

    found = verdict(rows, arm, rival=rival)
    where = "its end" if rows[0]["share"] == 1 else f"where it is at {rows[0]['share']:.0%} of its run"
    table = Table("problem", "by loss", "by its own measure", title=f"{arm} against {rival}: steps to {where}")
    counted = [ratios for problem, ratios in found.items() if problem not in without]
    medians = {
        name: median(ratios[name] if ratios[name] is not None else float("inf") for ratios in counted) for name in ("loss", "own")
    }
    for problem, ratios in found.items():
        table.add_row(f"({problem})" if problem in without else problem, *(_percent(ratios[name]) for name in ("loss", "own")))
    table.add_row("median", *(_percent(value if value < float("inf") else None) for value in medians.values()))
    Console(width=180).print(table)


def _percent(ratio: float | None) -> str:
    return "never" if ratio is None else f"{ratio:+.1%}"


def print_table(rows: list[dict[str, Any]]) -> None:
    """Steps to each rival's end, by loss and by right answers, with the ratio to what the rival itself takes to get there."""
    from rich.console import Console
    from rich.table import Table

    own = {(row["problem"], row["arm"]): row["steps"] for row in rows}
    console = Console(width=180)
    where = "'s end" if rows[0]["share"] == 1 else f" at {rows[0]['share']:.0%}"
    for measure, title in (("loss", "loss"), ("wrong", "share of right answers")):
        heads = [f"to {rival}{where}" for rival in RIVALS]
        table = Table(
            "problem", "arm", "lr (of)", "seeds", *heads, "final", "test", "right", "train s", "jumps", title=f"By {title}"
        )
        for row in rows:
            figures = [_figure(row, own.get((row["problem"], rival)), measure, rival) for rival in RIVALS]
            if measure == "loss" or row["test_right"]:
                table.add_row(
                    row["problem"], row["arm"], f"{row['lr']:g} ({len(row['rates'])})", str(row["seeds"]), *figures, *_last(row)
                )
        console.print(table)
    for row in rows:
        if len(row["rates"]) > 1:
            ends = "; ".join(
                f"{rate:g}: {', '.join(f'{loss:.4f}' for loss in by_seed.values())}" for rate, by_seed in row["rates"].items()
            )
            console.print(f"{row['problem']}, {row['arm']}: final loss by rate, of each seed: {ends}")
        if "target" in row:
            console.print(f"{row['problem']}, {row['arm']}: steps to {row['target']['right']:.1%} right: {row['target']['steps']}")


def _figure(row: dict[str, Any], rival_steps: dict[str, Any] | None, measure: str, rival: str) -> str:
    steps = row["steps"][measure].get(rival)
    theirs = rival_steps[measure].get(rival) if rival_steps else None
    return f"{steps:.0f} ({steps / theirs - 1:+.0%})" if steps and theirs else "-"


def _last(row: dict[str, Any]) -> tuple[str, ...]:
    right = f"{row['test_right']:.1%}" if row["test_right"] else ""
    return (f"{row['final']:.4f}", f"{row['test']:.4f}", right, f"{row['train_s']:.0f}", "/".join(map(str, row["jumps"].values())))


def draw(problems: Problems, path: Path, *, only: Sequence[str] = ()) -> None:
    """Smoothed validation loss, median over seeds, one panel a problem, each arm at its best final loss.

    Args:
        problems: as read.
        path: of the PNG.
        only: the arms to draw; all if empty.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    names = list(only) or sorted({name for arms in problems.values() for name in arms})
    colours = dict(zip(names, plt.get_cmap("tab10" if len(names) <= 10 else "tab20").colors, strict=False))  # type: ignore[attr-defined]
    columns = min(len(problems), COLUMNS)
    rows = -(-len(problems) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(5 * columns, 4 * rows), squeeze=False)
    for axis in axes.flat[len(problems) :]:
        axis.axis("off")
    lines = {}
    for axis, (problem, arms) in zip(axes.flat, sorted(problems.items()), strict=False):
        for name in [name for name in names if name in arms]:
            curves = _longest(min(arms[name].values(), key=lambda curves: _level(curves, "loss")))
            losses = np.median([curve.loss for curve in curves], axis=0)
            (lines[name],) = axis.plot(curves[0].steps, losses, linewidth=1, color=colours.get(name, "grey"))
        # as high as Adam begins: an arm that diverges would flatten all others
        starts = [curve.loss[0] for curves in arms.get("adam", {}).values() for curve in curves]
        top = 1.1 * max(starts) if starts else None
        axis.set(title=problem, xlabel="step", ylabel="validation loss, smoothed", yscale="log", ylim=(None, top))
    figure.tight_layout(rect=(0, 0.03 + 0.02 * (len(lines) // 8), 1, 1))
    figure.legend(lines.values(), lines.keys(), loc="lower center", ncols=8, fontsize=8)
    figure.savefig(path, dpi=130)
