"""What a comparison showed, in figures and in sentences. Decided on validation data, reported on test data."""

import math
import os
import platform
import sys
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from statistics import mean, median, stdev
from typing import Final

from protos import DISTRIBUTION
from protos.messages import Skill
from trainer_worker.training.config import Config
from trainer_worker.training.records import Record, RunRecord, Score

METRIC: Final = "smoothed validation loss"
SMOOTHING: Final = 5  # evaluations, the current one and those before it, whose median decides: a single one is too noisy
ENOUGH_SEEDS: Final = 3
ALWAYS: Final = (  # what can be said of every comparison
    "Both arms start from the same weights and see the same batches. Validation data set the target; test data decide nothing.",
    "Steps do not depend on the machine. Seconds do: the runs came one after the other, and can be compared if nothing else ran.",
    "It holds for this model, data, learning rate and schedule. Pushes help least late in a run, with overfitting, falling rates.",
)


class RunFigures(Record):
    arm: str
    seed: int
    target: float  # what the smoothed validation loss had to reach: the plain run's best
    steps_to_target: int | None  # first evaluated step at which it did; None if never
    s_to_target: float | None  # seconds of training until then; evaluations, checkpoints and start-up are not counted
    final_validation: Score  # smoothed, at the last step
    best_step: int  # with the lowest smoothed validation loss
    best: Score  # smoothed test score at that step


class ArmFigures(Record):
    """One arm: medians over seeds; steps to target only if most reached it; mean skill by forecaster, over seeds and horizons."""

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
    name: str
    config: Config  # of the job, as it ran
    versions: dict[str, str]  # of Python, the machine and the packages that matter
    wall_s: float  # seconds of the whole command
    arms: list[ArmFigures]  # the plain one first
    figures: list[RunFigures]  # by arm and seed
    runs: list[RunRecord]  # the curves and events behind them

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


def summarise(config: Config, runs: Sequence[RunRecord], *, wall_s: float) -> Summary:
    """Work out a comparison; the first run of each seed is the plain one, which sets the target."""
    plain = {run.seed: run for run in reversed(runs)}
    figures = [_figures(run, plain=plain[run.seed]) for run in runs]
    names = dict.fromkeys(run.arm for run in runs)
    arms = [[(figure, run) for figure, run in zip(figures, runs, strict=True) if run.arm == name] for name in names]
    return Summary(
        name=config.output.folder.name,
        config=config,
        versions=_versions(),
        wall_s=wall_s,
        arms=[_over_seeds(arm, plain=arms[0]) for arm in arms],
        figures=figures,
        runs=list(runs),
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
        best=Score(loss=median(each.best.loss for each in figures), accuracy=median(each.best.accuracy for each in figures)),
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


class Verdict:
    """The arm with nowcasts against the plain one, in sentences, of a summary that has both."""

    def __init__(self, summary: Summary) -> None:
        self.plain, self.arm = summary.arms
        self._steps = summary.config.train.steps
        base, figures = ([each for each in summary.figures if each.arm == arm.arm] for arm in summary.arms)
        self._pairs = list(zip(figures, base, strict=True))  # of the same seed, batches and initial weights
        self._plain_run, *_ = summary.runs
        self._runs = [run for run in summary.runs if run.arm == self.arm.arm]

    @property
    def answer(self) -> str:
        if self.plain.steps_to_target is None:
            return "No answer: the plain run diverged."
        if (seeds := len(self._pairs)) < ENOUGH_SEEDS:
            return f"{('One seed', 'Two seeds')[seeds - 1]} only: an indication, not an answer."
        steps = [(mine.steps_to_target, its.steps_to_target or math.inf) for mine, its in self._pairs]
        faster = [mine is not None and mine < its for mine, its in steps]
        if all(faster) and (self.arm.fewer_steps or 0) > 0:
            return "Yes: fewer steps with every seed."
        if not any(faster):
            return "No: no seed got there sooner."
        return "Not clearly: seeds disagree."

    @property
    def helped(self) -> str:
        """How many steps, and how much time."""
        arm, plain, goal = self.arm, self.plain, f"the plain run's best {METRIC}"
        if plain.steps_to_target is None:
            return "There is no loss to reach: lower the learning rate, so that the plain run does not diverge."
        if arm.steps_to_target is None:
            return f"It did not reach {goal} in {self._steps:,} steps ({arm.reached} of {arm.seeds} seeds did)."
        text = f"It reached {goal} after {arm.steps_to_target:,.0f} steps"
        if arm.fewer_steps is not None:
            more = f"{abs(arm.fewer_steps):.0%} {'fewer' if arm.fewer_steps > 0 else 'more'}" if arm.fewer_steps else "as many"
            text += f"; the plain run took {plain.steps_to_target:,.0f}: {more} steps"
        if arm.less_time is not None and arm.s_to_target is not None and plain.s_to_target is not None:
            less = f"{abs(arm.less_time):.0%} {'less' if arm.less_time >= 0 else 'more'}"
            text += f", {less} training time ({_time(arm.s_to_target)} instead of {_time(plain.s_to_target)})"
        return f"{text}. Test loss at the best step: {arm.best.loss:.4g}, plain {plain.best.loss:.4g}."

    @property
    def cost(self) -> str:
        """Of a step, and what was waited for."""
        mine, its = self.arm.step_s, self.plain.step_s
        text = f"A step took {mine * 1000:.2f} ms, {mine / its - 1:+.0%} against the plain run's {its * 1000:.2f} ms."
        if made := [run.nowcast for run in self._runs if run.nowcast]:
            waited, copied = (mean(float(each.get(name, 0.0)) for each in made) for name in ("waited_s", "copied_s"))
            text += f" A run waited {_time(waited)} for forecasts and spent {_time(copied)} copying snapshots."
        used = sum(count for outcome, count in self.arm.nowcasts.items() if outcome != "skipped")
        text += f" Forecasts used: {used:,}; skipped: {self.arm.nowcasts.get('skipped', 0):,}"
        reasons = sum((Counter(run.reasons) for run in self._runs), Counter[str]())
        return text + (f" ({', '.join(f'{times} {reason}' for reason, times in reasons.most_common())})." if reasons else ".")

    @property
    def trust(self) -> list[str]:
        """What speaks for it and against it."""
        said = []
        differences = [mine.final_validation.loss - its.final_validation.loss for mine, its in self._pairs]
        finite = [each for each in differences if math.isfinite(each)]
        if len(finite) >= 2:
            band = stdev(finite) / math.sqrt(len(finite))
            clear = "more than" if abs(mean(finite)) > 2 * band else "within"
            said.append(
                f"Validation loss at the end differs by {mean(finite):+.4g} in the mean of {len(finite)} seeds, "
                f"with a standard error of {band:.2g}: {clear} what chance explains (two standard errors)."
            )
        elif finite and len(differences) == 1:
            said.append(
                f"There is one seed, so chance cannot be told from effect. Validation loss at the end differs by {finite[0]:+.4g}; "
                f"evaluations of the plain run alone scatter by {_scatter(self._plain_run):.2g}."
            )
        mine, its = (sum(math.isinf(each.final_validation.loss) for each in side) for side in zip(*self._pairs, strict=True))
        if mine or its:
            said.append(f"Diverged: {its} of {len(differences)} plain runs, {mine} with nowcasts.")
        if len(self._pairs) < ENOUGH_SEEDS:
            said.append(f"For a decision run {ENOUGH_SEEDS} seeds or more: --seed 1 --seed 2 --seed 3.")
        if any(mine.best_step < 0.7 * self._steps for mine, _ in self._pairs):
            said.append("The best step lies well before the end: the run overfits or is too long, and saves less than figures say.")
        return [*said, *ALWAYS]


def _scatter(run: RunRecord) -> float:
    """How far evaluations near the end of a run lie apart."""
    losses = [each.validation.loss for each in run.evaluations if math.isfinite(each.validation.loss)]
    last = losses[-max(3, len(losses) // 5) :]
    return stdev(last) if len(last) > 1 else math.nan


def _time(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.1f} min"
