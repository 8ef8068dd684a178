"""What a comparison showed, in figures and in sentences. Decided on validation data, reported on test data."""

import math
import os
import platform
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from statistics import mean, median, stdev
from typing import Any, Final

from protos import DISTRIBUTION
from protos.messages import Skill
from trainer_worker.training.config import Config
from trainer_worker.training.records import Record, RunRecord, Score, is_average

METRIC: Final = "smoothed validation loss"
SMOOTHING: Final = 5
"""Evaluations of which a smoothed curve is the median, the current one and those before it.

A single one is too noisy to decide on; and the median, unlike the mean, is not moved by the one evaluation that may fall right
after a jump.
"""

ENOUGH_SEEDS: Final = 3
ALWAYS: Final = (
    "Both arms start from the same weights and see the same batches. Validation data set the target; test data decide nothing.",
    "Steps do not depend on the machine. Seconds do: the runs came one after the other, and can be compared if nothing else ran.",
    "It holds for this model, data, learning rate and schedule. Pushes help least late in a run, with overfitting, falling rates.",
)
"""What can be said of every comparison; of that of averages it is not said again."""


class RunFigures(Record):
    """One run."""

    arm: str
    seed: int
    target: float  # what the smoothed validation loss had to reach: the plain run's best
    steps_to_target: int | None  # first evaluated step at which it did; None if never
    s_to_target: float | None  # seconds of training until then; evaluations, checkpoints and start-up are not counted
    final_validation: Score  # smoothed, at the last step
    best_step: int  # with the lowest smoothed validation loss
    best: Score  # smoothed test score at that step


class ArmFigures(Record):
    """One arm: medians over its seeds; steps to target only if most seeds reached it; skill by forecaster, the mean of all seeds
    and horizons.
    """

    arm: str
    seeds: int
    reached: int
    steps_to_target: float | None
    fewer_steps: float | None
    s_to_target: float | None
    less_time: float | None
    best: Score
    step_s: float
    wall_s: float
    nowcasts: dict[str, int]
    skill: dict[str, float]


class Summary(Record):
    """A comparison."""

    name: str
    config: Config  # of the job, as it ran
    versions: dict[str, str]  # of Python, the machine and the packages that matter
    server: dict[str, Any] | None  # `GET /v1/info` of the nowcast server; None if forecasts were embedded
    wall_s: float  # seconds of the whole command
    arms: list[ArmFigures]
    figures: list[RunFigures]  # by arm and seed
    runs: list[RunRecord]  # the curves and events behind them; of runs that averaged their weights, the averages' curves too

    @property
    def headline(self) -> str:
        """What was trained, as table and picture say it."""
        train, workers = self.config.train, self.config.workers.count or 1
        processes = f"{workers} workers" if workers > 1 else "1 worker"
        seeds = f"{len(train.seeds)} seeds" if len(train.seeds) > 1 else f"seed {train.seeds[0]}"
        return f"{self.config.task.name}, {train.steps:,} steps, {processes}, {seeds}"


def smooth(values: Sequence[float]) -> list[float]:
    """Median of each value and up to `SMOOTHING` - 1 before it; the NaN of a run that diverged is as bad as can be, infinity."""
    ranked = [math.inf if math.isnan(value) else value for value in values]
    return [median(ranked[max(0, end - SMOOTHING) : end]) for end in range(1, len(ranked) + 1)]


def summarise(config: Config, runs: Sequence[RunRecord], *, server: dict[str, Any] | None, wall_s: float) -> Summary:
    """Work out a comparison; the first run of each seed is the plain one, which sets the target: its weights for weights, its
    average for averages.
    """
    curves = [*runs, *(average for run in runs if (average := run.average) is not None)]
    plain = {(run.seed, is_average(run.arm)): run for run in reversed(curves)}
    figures = [_figures(run, plain=plain[run.seed, is_average(run.arm)]) for run in curves]
    names = list(dict.fromkeys(run.arm for run in curves))
    by_arm = {name: [(figure, run) for figure, run in zip(figures, curves, strict=True) if run.arm == name] for name in names}
    first = {is_average(run.arm): run.arm for run in reversed(curves)}
    return Summary(
        name=config.output.folder.name,
        config=config,
        versions=_versions(),
        server=server,
        wall_s=wall_s,
        arms=[_over_seeds(by_arm[name], plain=by_arm[first[is_average(name)]]) for name in names],
        figures=figures,
        runs=curves,
    )


def _figures(run: RunRecord, *, plain: RunRecord) -> RunFigures:
    validation, test = (_smooth_scores([getattr(each, split) for each in run.evaluations]) for split in ("validation", "test"))
    target = min(smooth([evaluation.validation.loss for evaluation in plain.evaluations]))
    hits = [index for index, score in enumerate(validation) if score.loss <= target < math.inf]
    best = min(range(len(validation)), key=lambda index: validation[index].loss)
    return RunFigures(
        arm=run.arm,
        seed=run.seed,
        target=target,
        steps_to_target=run.evaluations[hits[0]].step if hits else None,
        s_to_target=run.evaluations[hits[0]].train_s if hits else None,
        final_validation=validation[-1],
        best_step=run.evaluations[best].step,
        best=test[best],
    )


def _smooth_scores(scores: Sequence[Score]) -> list[Score]:
    curves = smooth([score.loss for score in scores]), smooth([score.accuracy for score in scores])
    return [Score(loss=loss, accuracy=accuracy) for loss, accuracy in zip(*curves, strict=True)]


def _over_seeds(arm: Sequence[tuple[RunFigures, RunRecord]], *, plain: Sequence[tuple[RunFigures, RunRecord]]) -> ArmFigures:
    figures, runs = [figure for figure, _ in arm], [run for _, run in arm]
    base = [figure for figure, _ in plain]
    steps, base_steps = (_median_or_none([each.steps_to_target for each in those]) for those in (figures, base))
    seconds, base_seconds = (_median_or_none([each.s_to_target for each in those]) for those in (figures, base))
    return ArmFigures(
        arm=figures[0].arm,
        seeds=len(figures),
        reached=sum(figure.steps_to_target is not None for figure in figures),
        steps_to_target=steps,
        fewer_steps=_saved(steps, base_steps),
        s_to_target=seconds,
        less_time=_saved(seconds, base_seconds),
        best=Score(
            loss=median(figure.best.loss for figure in figures), accuracy=median(figure.best.accuracy for figure in figures)
        ),
        step_s=median(run.step_s for run in runs),
        wall_s=median(run.wall_s for run in runs),
        nowcasts=dict(sum((Counter(run.outcomes) for run in runs), Counter())),
        skill=_mean_skill([run.skill for run in runs]),
    )


def _mean_skill(skills: Sequence[Skill]) -> dict[str, float]:
    told = [(name, value) for skill in skills for by_forecaster in skill.values() for name, value in by_forecaster.items()]
    return {name: mean(value for other, value in told if other == name) for name, _ in told}


def _median_or_none(figures: Sequence[float | None]) -> float | None:
    """The median with the runs that never arrived counted as slowest; None if it falls among them."""
    found = median(math.inf if each is None else each for each in figures)
    return None if math.isinf(found) else found


def _saved(figure: float | None, base: float | None) -> float | None:
    return 1 - figure / base if figure is not None and base else None


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "platform": platform.platform(), "cpus": str(os.cpu_count())}
    for package in (DISTRIBUTION, "torch", "ray", "torch-geometric"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    found["command"] = " ".join(sys.argv)
    return found


@dataclass(frozen=True)
class Verdict:
    """Of one arm against the plain one."""

    summary: Summary
    arm: ArmFigures
    plain: ArmFigures

    @property
    def pairs(self) -> list[tuple[RunFigures, RunFigures]]:
        """The arm's runs with the plain ones of the same seed, batches and initial weights."""
        base = {figures.seed: figures for figures in self.summary.figures if figures.arm == self.plain.arm}
        return [(each, base[each.seed]) for each in self.summary.figures if each.arm == self.arm.arm and each.seed in base]

    @property
    def word(self) -> str:
        """One of `report.WORDS`."""
        pairs = self.pairs
        faster = [
            mine.steps_to_target is not None and mine.steps_to_target < (its.steps_to_target or math.inf) for mine, its in pairs
        ]
        if len(pairs) < ENOUGH_SEEDS:
            return "one seed" if len(pairs) == 1 else "few seeds"
        if all(faster) and (self.arm.fewer_steps or 0) > 0:
            return "helped"
        if not any(faster) and self.plain.steps_to_target is not None:
            return "did not help"
        return "no clear difference"

    @property
    def helped(self) -> str:
        """How many steps, and how much time."""
        arm, plain, goal = self.arm, self.plain, f"the plain run's best {METRIC}"
        if arm.steps_to_target is None:
            return f"It did not reach {goal} in {self.summary.config.train.steps:,} steps ({arm.reached} of {arm.seeds} seeds did)."
        text = f"It reached {goal} after {arm.steps_to_target:,.0f} steps"
        if plain.steps_to_target and arm.fewer_steps is not None:
            more = f"{abs(arm.fewer_steps):.0%} {'fewer' if arm.fewer_steps > 0 else 'more'}" if arm.fewer_steps else "as many"
            text += f"; the plain run took {plain.steps_to_target:,.0f}: {more} steps"
        if arm.less_time is not None and arm.s_to_target is not None and plain.s_to_target is not None:
            less = "less" if arm.less_time >= 0 else "more"
            text += (
                f", {abs(arm.less_time):.0%} {less} training time ({_time(arm.s_to_target)} instead of {_time(plain.s_to_target)})"
            )
        return f"{text}. Test loss at the best step: {arm.best.loss:.4g}, plain {plain.best.loss:.4g}."

    @property
    def cost(self) -> str:
        """Of a step, and what was waited for."""
        arm, plain = self.arm, self.plain
        if is_average(arm.arm):
            return "That of the run whose weights are averaged; the average itself costs both sides the same."
        step = arm.step_s / plain.step_s - 1 if plain.step_s else math.nan
        text = f"A step took {arm.step_s * 1000:.2f} ms, {step:+.0%} against the plain run's {plain.step_s * 1000:.2f} ms."
        runs = [run for run in self.summary.runs if run.arm == arm.arm]
        if made := [run.nowcast for run in runs if run.nowcast]:
            waited, copied = (mean(float(each.get(name, 0.0)) for each in made) for name in ("waited_s", "copied_s"))
            text += f" A run waited {_time(waited)} for forecasts and spent {_time(copied)} copying snapshots."
        used = sum(count for outcome, count in arm.nowcasts.items() if outcome != "skipped")
        text += f" Forecasts used: {used:,}; skipped: {arm.nowcasts.get('skipped', 0):,}"
        reasons = sum((Counter(run.reasons) for run in runs), Counter[str]())
        return text + (f" ({', '.join(f'{times} {reason}' for reason, times in reasons.most_common())})." if reasons else ".")

    @property
    def trust(self) -> list[str]:
        """What speaks for it and against it."""
        pairs, said = self.pairs, []
        differences = [mine.final_validation.loss - its.final_validation.loss for mine, its in pairs]
        finite = [each for each in differences if math.isfinite(each)]
        if len(finite) >= 2:
            band = stdev(finite) / math.sqrt(len(finite))
            clear = abs(mean(finite)) > 2 * band
            said.append(
                f"Validation loss at the end differs by {mean(finite):+.4g} in the mean of {len(finite)} seeds, "
                f"with a standard error of {band:.2g}: "
                f"{'more than' if clear else 'within'} what chance explains (two standard errors)."
            )
        elif finite:
            said.append(
                f"There is one seed, so chance cannot be told from effect. Validation loss at the end differs by {finite[0]:+.4g}; "
                f"evaluations of the plain run alone scatter by {self._scatter:.2g}."
            )
        if len(pairs) < ENOUGH_SEEDS:
            said.append(f"For a decision run {ENOUGH_SEEDS} seeds or more: --seed 1 --seed 2 --seed 3.")
        if any(mine.best_step < 0.7 * self.summary.config.train.steps for mine, _ in pairs):
            said.append(
                "The best step lies well before the end: the run overfits or is too long, and saves less than the figures say."
            )
        return said + ([] if is_average(self.arm.arm) else list(ALWAYS))

    @property
    def _scatter(self) -> float:
        """How far evaluations near the end of the first plain run lie apart."""
        run = next(run for run in self.summary.runs if run.arm == self.plain.arm)
        losses = [each.validation.loss for each in run.evaluations if math.isfinite(each.validation.loss)]
        last = losses[-max(3, len(losses) // 5) :]
        return stdev(last) if len(last) > 1 else math.nan


def verdicts(summary: Summary) -> list[Verdict]:
    """One for each arm but the plain ones; averages are compared with the plain run's average."""
    plain: dict[bool, ArmFigures] = {}
    for arm in summary.arms:
        plain.setdefault(is_average(arm.arm), arm)
    return [Verdict(summary, arm, base) for arm in summary.arms if arm is not (base := plain[is_average(arm.arm)])]


def _time(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.1f} min"
