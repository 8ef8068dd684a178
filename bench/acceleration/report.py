"""From runs to a table and a picture."""

import json
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

SMOOTH = 5
"""Evaluations that a validation loss is averaged over before anything is decided on it."""
RIGHT = {"fm-16": 0.895, "fm-32": 0.905}
"""The paper's targets, here for the share of validation pictures that are classified rightly, not smoothed."""
RIVALS = ("adam", "adam+ema", "decay")
"""What a nowcast is measured against: where they end."""

Run = dict[str, Any]
Curves = dict[tuple[str, str, float], list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], Run]]]
"""By problem, arm and rate: steps, smoothed losses and the run, for each seed and length."""


def read(folder: Path) -> Curves:
    """All runs below a folder; each gives two arms, its weights and their average."""
    found: Curves = defaultdict(list)
    for path in sorted(folder.rglob("*.json")):
        run = json.loads(path.read_text())
        curve = np.array(run["curve"])
        kernel = np.ones(SMOOTH) / SMOOTH
        for column, name in ((1, run["arm"]), (2, f"{run['arm']}+ema")):
            smooth = np.convolve(curve[:, column], kernel, mode="valid")
            found[run["problem"], name, run["lr"]].append((curve[SMOOTH - 1 :, 0], smooth, run))
    return found


def summarise(curves: Curves) -> list[dict[str, Any]]:
    """One row for each problem and arm: how soon it is where each rival ends, and its own end at its best rate."""
    rows = []
    for problem in sorted({key[0] for key in curves}):
        arms = {arm: _by_rate(curves, problem, arm) for arm in sorted({key[1] for key in curves if key[0] == problem})}
        goals = {rival: min(_final(runs) for runs in arms[rival].values()) for rival in RIVALS if rival in arms}
        for arm, among in arms.items():
            steps = {rival: _fewest(among, goal) for rival, goal in goals.items()}
            rows.append(
                {"problem": problem, "arm": arm, "goals": goals, "steps": steps, **_end(among, averaged=arm.endswith("+ema"))}
            )
            if goal := RIGHT.get(problem):
                found = {f"{rate:g}": _right(runs, goal, averaged=arm.endswith("+ema")) for rate, runs in among.items()}
                rows[-1]["right"] = {"target": goal, "steps": found}
    return rows


def _by_rate(curves: Curves, problem: str, arm: str) -> dict[float, list[Any]]:
    return {rate: runs for (where, which, rate), runs in curves.items() if (where, which) == (problem, arm)}


def _fewest(among: dict[float, list[Any]], goal: float) -> float | None:
    """Steps to a loss at the rate that needs the fewest."""
    fewest = min(_steps(runs, goal) for runs in among.values())
    return None if fewest == float("inf") else fewest


def _final(runs: list[Any]) -> float:
    """Median over seeds of the final loss of the longest runs."""
    longest = max(run["steps"] for *_, run in runs)
    return median(float(losses[-1]) for _, losses, run in runs if run["steps"] == longest)


def _end(among: dict[float, list[Any]], *, averaged: bool) -> dict[str, Any]:
    """The figures at the rate with the lowest final loss."""
    rate = min(among, key=lambda rate: _final(among[rate]))
    runs = among[rate]
    longest = [run for *_, run in runs if run["steps"] == max(run["steps"] for *_, run in runs)]
    jumps = [event for run in longest for event in run.get("events", ()) if event["kind"] == "nowcast"]
    return {
        "lr": rate,
        "rates": sorted(among),
        "seeds": len({run["seed"] for run in longest}),
        "final": _final(runs),
        "test": median(run["test"][averaged] for run in longest),
        "test_right": median(run["test_right"][averaged] for run in longest),
        "train_s": median(run["train_s"] for run in longest),
        "jumps": {outcome: sum(event["outcome"] == outcome for event in jumps) for outcome in ("accepted", "rejected", "skipped")},
    }


def _steps(runs: list[Any], target: float) -> float:
    """Median over seeds of the first step at which the smoothed loss is at the target, of the best length for each seed."""
    by_seed: dict[int, float] = defaultdict(lambda: float("inf"))
    for steps, losses, run in runs:
        hits = steps[losses <= target]
        by_seed[run["seed"]] = min(by_seed[run["seed"]], float(hits[0]) if len(hits) else float("inf"))
    return median(by_seed.values())


def _right(runs: list[Any], target: float, *, averaged: bool) -> dict[str, int | None]:
    """By seed, the first step with so many right answers."""
    found: dict[str, int | None] = {}
    for *_, run in runs:
        hits = [step for step, *_, right, smooth in run["curve"] if (smooth if averaged else right) >= target]
        found[f"{run['seed']}, {run['steps']} steps"] = hits[0] if hits else None
    return found


def print_table(rows: list[dict[str, Any]]) -> None:
    """With the ratio of steps to what each rival itself takes to where it ends."""
    from rich.console import Console
    from rich.table import Table

    own = {(row["problem"], row["arm"]): row["steps"].get(row["arm"]) for row in rows}
    heads = [f"to {rival}'s end" for rival in RIVALS]
    table = Table("problem", "arm", "lr (of)", "seeds", *heads, "final", "test", "right", "train s", "jumps")
    for row in rows:
        figures = []
        for rival in RIVALS:
            steps, theirs = row["steps"].get(rival), own.get((row["problem"], rival))
            figures.append(f"{steps:.0f} ({steps / theirs - 1:+.0%})" if steps and theirs else "-")
        last = (f"{row['final']:.4f}", f"{row['test']:.4f}", f"{row['test_right']:.1%}" if row["test_right"] else "")
        table.add_row(
            row["problem"],
            row["arm"],
            f"{row['lr']:g} ({len(row['rates'])})",
            str(row["seeds"]),
            *figures,
            *last,
            f"{row['train_s']:.0f}",
            "/".join(map(str, row["jumps"].values())),
        )
    console = Console(width=170)
    console.print(table)
    for row in rows:
        if "right" in row:
            console.print(f"{row['problem']}, {row['arm']}: steps to {row['right']['target']:.1%} right: {row['right']['steps']}")


def draw(curves: Curves, path: Path) -> None:
    """Smoothed validation loss, median over seeds, one panel a problem, each arm at its best final loss."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    problems, arms = sorted({key[0] for key in curves}), sorted({key[1] for key in curves})
    colours = dict(zip(arms, plt.get_cmap("tab20")(range(len(arms))), strict=True))
    figure, axes = plt.subplots(1, len(problems), figsize=(5 * len(problems), 4), squeeze=False)
    for axis, problem in zip(axes[0], problems, strict=True):
        for arm in sorted({key[1] for key in curves if key[0] == problem}):
            among = {key[2]: runs for key, runs in curves.items() if key[:2] == (problem, arm)}
            runs = among[min(among, key=lambda rate: _final(among[rate]))]
            longest = max(run["steps"] for *_, run in runs)
            lines = [(steps, losses) for steps, losses, run in runs if run["steps"] == longest]
            axis.plot(lines[0][0], np.median([losses for _, losses in lines], axis=0), label=arm, linewidth=1, color=colours[arm])
        # as high as Adam begins: an arm that diverges would flatten all others
        starts = [
            losses[0] for (where, arm, _), runs in curves.items() if (where, arm) == (problem, "adam") for _, losses, _ in runs
        ]
        top = 1.1 * max(starts) if starts else None
        axis.set(title=problem, xlabel="step", ylabel="validation loss, smoothed", yscale="log", ylim=(None, top))
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
