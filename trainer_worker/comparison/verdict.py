"""What a comparison says, in sentences: did it help, how much, at what cost, can it be trusted."""

import math
from collections import Counter
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Final

from trainer_worker.comparison.summary import METRIC, ArmFigures, RunFigures, Summary
from trainer_worker.training.records import is_average

ENOUGH_SEEDS: Final = 3
ALWAYS: Final = (
    "Both arms start from the same weights and see the same batches. Validation data set the target; test data decide nothing.",
    "Steps do not depend on the machine. Seconds do: the runs came one after the other, and can be compared if nothing else ran.",
    "It holds for this model, data, learning rate and schedule. Pushes help least late in a run, with overfitting, falling rates.",
)
"""What can be said of every comparison; of that of averages it is not said again."""


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
