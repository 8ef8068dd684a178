"""What a comparison showed, in figures. Decided on validation data, reported on test data."""

import math
import os
import platform
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from statistics import mean, median
from typing import Any

from protos import DISTRIBUTION
from protos.messages import Skill
from trainer_worker.training.config import Config
from trainer_worker.training.records import Record, RunRecord, Score, is_average

METRIC = "smoothed validation loss"
SMOOTHING = 5
"""Evaluations of which a smoothed curve is the median, the current one and those before it.

A single one is too noisy to decide on; and the median, unlike the mean, is not moved by the one evaluation that may fall right
after a jump.
"""


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
    found: dict[str, list[float]] = defaultdict(list)
    for skill in skills:
        for by_forecaster in skill.values():
            for name, value in by_forecaster.items():
                found[name].append(value)
    return {name: mean(values) for name, values in found.items()}


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
