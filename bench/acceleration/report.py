"""From runs to tables and a picture."""

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

KEPT = Path(__file__).parent / "results"
"""The runs that are kept with the project."""
SMOOTH = 5
"""Evaluations that a validation curve is averaged over before anything is decided on it."""
PICTURES = ("fm-16", "fm-32", "fm-bn", "colour", "animals")
"""Problems whose own measure is the share of right answers, as in the paper; that of the others is loss."""
RIVALS = ("adam", "adam+ema", "decay", "cosine")
"""Whose final levels the long table measures by."""

COLUMNS = 4
"""Of the picture."""
SETTINGS = re.compile(r":[^+]+")
"""In an arm's name."""
FIRST = 0.1
"""Share of a run before which its highest loss does not count: every run begins high."""

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
        """Its name; that of a rival is without its settings, which are tuned as learning rates are."""
        name = self.run["arm"] if self.glides else SETTINGS.sub("", self.run["arm"])
        return f"{name}{'+ema' if self.averaged else ''}"

    @property
    def tuned(self) -> str:
        """Learning rate, and a rival's settings."""
        settings = "" if self.glides else "".join(SETTINGS.findall(self.run["arm"]))
        return f"{self.run['lr']:g}{settings}"

    @property
    def glides(self) -> bool:
        """Whether there is a forecaster."""
        return "nowcasts" in self.run

    def first(self, measure: str, goal: float) -> float:
        """The first step at which a measure is down at a goal, on the line between two evaluations; infinity is none."""
        values = getattr(self, measure)
        hits = np.flatnonzero(values <= goal) if goal < np.inf else ()
        if not len(hits):
            return float("inf")
        after = hits[0]
        before = max(after - 1, 0)
        if not np.isfinite(values[before]):
            return float(self.steps[after])
        return float(np.interp(-goal, -values[[before, after]], self.steps[[before, after]]))

    @property
    def highest(self) -> float:
        """The highest loss after the first tenth of the run, not smoothed."""
        values = np.array(self.run["curve"])
        return float(values[values[:, 0] > FIRST * values[-1, 0], 2 if self.averaged else 1].max())


Arm = dict[str, list[Curve]]
"""Runs by learning rate and settings."""
Problems = dict[str, dict[str, Arm]]
"""By problem and arm."""


def _smooth(values: Floats) -> Floats:
    """The NaN of a run that diverged is as bad as can be, infinity: medians and minima have no place for it."""
    return np.convolve(np.where(np.isnan(values), np.inf, values), np.ones(SMOOTH) / SMOOTH, mode="valid")


def read(folder: Path) -> Problems:
    """All runs below a folder; each gives two arms, its weights and their average. Without any the program ends."""
    found: Problems = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for path in sorted(folder.rglob("*.json")):
        run = json.loads(path.read_text())
        for averaged in (False, True):
            curve = Curve.of(run, averaged=averaged)
            found[run["problem"]][curve.arm][curve.tuned].append(curve)
    if not found:
        raise SystemExit(f"there are no runs in {folder}: make some with `run`, or read bench/acceleration/results/README.md")
    return found


def summarise(problems: Problems) -> list[dict[str, Any]]:
    """One row for each problem and arm at its best rate: how soon it is where each rival ends; its own end."""
    rows = []
    for problem, arms in sorted(problems.items()):
        for name, arm in sorted(arms.items()):
            steps = {measure: _to_rivals(arms, arm, measure) for measure in ("loss", "wrong")}
            rows.append({"problem": problem, "arm": name, "steps": steps, **_end(arm)})
    return rows


def _to_rivals(arms: dict[str, Arm], arm: Arm, measure: str) -> dict[str, float | None]:
    """Steps to where each rival ends, seed by seed, each at its best rate; None: it does not get there, or no seed is shared."""
    found = {}
    for rival in RIVALS:
        if rival in arms:
            goals = _goals(arms[rival], measure)
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


def _at(curve: Curve, measure: str, share: float = 1.0) -> float:
    return float(getattr(curve, measure)[curve.steps <= share * curve.steps[-1]][-1])


def _goals(arm: Arm, measure: str, share: float = 1.0) -> dict[int, float]:
    """Where an arm at its best rate is after a share of its run, by seed."""
    return {curve.run["seed"]: _at(curve, measure, share) for curve in _longest(_tuned(arm, measure))}


def _level(curves: list[Curve], measure: str) -> float:
    """Median over seeds of where the longest runs end."""
    return median(_at(curve, measure) for curve in _longest(curves))


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
    runs, averaged = [curve.run for curve in curves], curves[0].averaged
    return {
        "lr": curves[0].tuned,
        "rates": {each: _by_seed(_longest(arm[each])) for each in sorted(arm)},
        "seeds": len({run["seed"] for run in runs}),
        "final": _level(curves, "loss"),
        "test": median(run["test"][averaged] for run in runs),
        "test_right": median(run["test_right"][averaged] for run in runs),
        "train_s": median(run["train_s"] for run in runs),
        "highest": median(curve.highest for curve in curves),
    }


def _by_seed(curves: list[Curve]) -> dict[int, float]:
    """Final losses."""
    return {curve.run["seed"]: _at(curve, "loss") for curve in curves}


def compare(problems: Problems, arm: str, *, rival: str) -> list[dict[str, Any]]:
    """What an arm gains on each problem, average against average and weights against weights, both at their best rates.

    Args:
        problems: as read.
        arm: without `+ema`.
        rival: likewise; `strongest` for the one without a forecaster that is first where Adam's average is, problem by problem.

    Returns:
        for each problem `steps`: ratios less 1 of the steps to where the rival is, (average at 75%, at the end, weights likewise),
        None where that is never; by loss and by wrong answers. `end`: final losses of the rival's average and the arm's. `spike`:
        the highest loss relative to Adam's. `seconds`: of training to where the rival's average ends, the rival's and the arm's.
    """
    rows = []
    for problem, arms in sorted(problems.items()):
        other = _strongest(arms) if rival == "strongest" else rival
        if not {f"{arm}+ema", f"{other}+ema", "adam+ema"} <= set(arms):
            continue
        steps = {}
        for measure in ("loss", "wrong"):
            mine, theirs = (_to_marks(arms, other, name, measure) for name in (arm, other))
            steps[measure] = [a / b - 1 if a < np.inf and b < np.inf else None for a, b in zip(mine, theirs, strict=True)]
        runs = {name: _longest(_tuned(arms[f"{name}+ema"], "loss")) for name in (other, arm)}
        row = {"problem": problem, "rival": other, "steps": steps, "seeds": len(runs[arm])}
        row["rates"] = [curves[0].tuned for curves in runs.values()]
        row["end"] = [_level(curves, "loss") for curves in runs.values()]
        row["spike"] = _end(arms[arm])["highest"] / _end(arms["adam"])["highest"]
        row["seconds"] = [_seconds(curves, _to_marks(arms, other, name, "loss")[1]) for name, curves in runs.items()]
        rows.append(row)
    return rows


def _strongest(arms: dict[str, Arm]) -> str:
    plain = [name for name, arm in arms.items() if name.endswith("+ema") and not next(iter(arm.values()))[0].glides]
    return min((name.removesuffix("+ema") for name in plain), key=lambda name: sum(_to_marks(arms, "adam", name, "loss")[:2]))


def _to_marks(arms: dict[str, Arm], rival: str, name: str, measure: str) -> list[float]:
    """Steps to where a rival's average is at 75% of its run and at the end, and the same of weights; medians over common seeds."""
    found = []
    for end in ("+ema", ""):
        for share in (0.75, 1.0):
            goals = _goals(arms[f"{rival}{end}"], measure, share)
            found.append(_steps(_tuned(arms[f"{name}{end}"], measure), measure, goals))
    return found


def _seconds(curves: list[Curve], steps: float) -> float | None:
    return median(curve.run["train_s"] / curve.run["steps"] for curve in curves) * steps if steps < np.inf else None


def print_comparison(rows: list[dict[str, Any]], arm: str, *, rival: str, without: Sequence[str] = ()) -> None:
    """A line for each problem, and the median over those that are not in `without`."""
    from rich.console import Console
    from rich.table import Table

    heads = ("average, at 75%", "at the end", "weights, at 75%", "at the end", "right answers: average, at 75%", "at the end")
    title = f"{arm} against {rival}: steps to where the rival is"
    table = Table(
        "problem", "rates", "seeds", *heads, "average ends at", "highest loss / Adam's", "seconds to the rival's end", title=title
    )
    counted: list[list[float | None]] = []
    for row in rows:
        problem, pictures = row["problem"], row["problem"] in PICTURES
        ratios = [*row["steps"]["loss"], *(row["steps"]["wrong"][:2] if pictures else row["steps"]["loss"][:2])]
        counted += [ratios] if problem not in without else []
        name = f"{problem} ({row['rival']})" if rival == "strongest" else problem
        seconds = " -> ".join("never" if each is None else f"{each:.0f}" for each in row["seconds"])
        rest = (" -> ".join(f"{loss:.4f}" for loss in row["end"]), f"{row['spike']:.2f}", seconds)
        table.add_row(name, ", ".join(row["rates"]), str(row["seeds"]), *map(_percent, ratios), *rest)
    if counted:
        medians = [median(np.inf if ratio is None else ratio for ratio in column) for column in zip(*counted, strict=True)]
        name = f"median without {', '.join(without)}" if without else "median"
        table.add_row(name, "", "", *(_percent(None if ratio == np.inf else ratio) for ratio in medians), "", "", "")
    Console(width=200).print(table)


def _percent(ratio: float | None) -> str:
    return "never" if ratio is None else f"{ratio:+.1%}"


def print_table(rows: list[dict[str, Any]]) -> None:
    """Steps to each rival's end, by loss and by right answers, with the ratio to what the rival itself takes to get there."""
    from rich.console import Console
    from rich.table import Table

    own = {(row["problem"], row["arm"]): row["steps"] for row in rows}
    console = Console(width=180)
    for measure, title in (("loss", "loss"), ("wrong", "share of right answers")):
        heads = [f"to {rival}'s end" for rival in RIVALS]
        table = Table(
            "problem", "arm", "lr (of)", "seeds", *heads, "final", "test", "right", "train s", "highest", title=f"By {title}"
        )
        for row in rows:
            figures = [_figure(row, own.get((row["problem"], rival)), measure, rival) for rival in RIVALS]
            if measure == "loss" or row["test_right"]:
                table.add_row(
                    row["problem"], row["arm"], f"{row['lr']} ({len(row['rates'])})", str(row["seeds"]), *figures, *_last(row)
                )
        console.print(table)
    for row in rows:
        if len(row["rates"]) > 1:
            ends = "; ".join(
                f"{rate}: {', '.join(f'{loss:.4f}' for loss in by_seed.values())}" for rate, by_seed in row["rates"].items()
            )
            console.print(f"{row['problem']}, {row['arm']}: final loss by rate, of each seed: {ends}")


def _figure(row: dict[str, Any], rival_steps: dict[str, Any] | None, measure: str, rival: str) -> str:
    steps = row["steps"][measure].get(rival)
    theirs = rival_steps[measure].get(rival) if rival_steps else None
    return f"{steps:.0f} ({steps / theirs - 1:+.0%})" if steps and theirs else "-"


def _last(row: dict[str, Any]) -> tuple[str, ...]:
    right = f"{row['test_right']:.1%}" if row["test_right"] else ""
    return (f"{row['final']:.4f}", f"{row['test']:.4f}", right, f"{row['train_s']:.0f}", f"{row['highest']:.4f}")


def draw(problems: Problems, path: Path, *, only: Sequence[str] = ()) -> None:
    """Smoothed validation loss, median over seeds, one panel a problem, each arm as tuned.

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
            curves = _longest(_tuned(arms[name], "loss"))
            losses = np.median([curve.loss for curve in curves], axis=0)
            (lines[name],) = axis.plot(curves[0].steps, losses, linewidth=1, color=colours.get(name, "grey"))
        # as high as Adam begins: an arm that diverges would flatten all others
        starts = [curve.loss[0] for curves in arms.get("adam", {}).values() for curve in curves]
        top = 1.1 * max(starts) if starts else None
        axis.set(title=problem, xlabel="step", ylabel="validation loss, smoothed", yscale="log", ylim=(None, top))
    figure.tight_layout(rect=(0, 0.03 + 0.02 * (len(lines) // 8), 1, 1))
    figure.legend(lines.values(), lines.keys(), loc="lower center", ncols=8, fontsize=8)
    figure.savefig(path, dpi=130)
