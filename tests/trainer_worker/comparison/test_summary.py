"""Figures of a comparison: smoothing, targets, medians; the table and the picture."""

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from trainer_worker.comparison import report
from trainer_worker.comparison.summary import Summary, smooth, summarise
from trainer_worker.training.config import Config, NowcastTable
from trainer_worker.training.records import Evaluation, RunRecord, Score, Scores


def run(
    arm: str,
    seed: int,
    losses: list[float],
    *,
    events: list[dict[str, Any]] | None = None,
    skill: dict[str, Any] | None = None,
    step_s: float = 0.01,
) -> RunRecord:
    """A run evaluated every 10 steps, with test losses 0.1 above those on validation data."""
    evaluations = [
        Evaluation(
            step=step,
            train_loss=loss,
            validation=Score(loss=loss, accuracy=1 - loss),
            test=Score(loss=loss + 0.1, accuracy=0.9 - loss),
            train_s=step * step_s,
        )
        for step, loss in zip(range(10, 10 * len(losses) + 1, 10), losses, strict=True)
    ]
    nowcast = None if events is None else {"job": "job", "skill": skill or {}}
    return RunRecord(
        arm=arm, seed=seed, parameters=1, restores=0, evaluations=evaluations, events=events or [], nowcast=nowcast, wall_s=9.0
    )


def config(folder: Path, *, seeds: tuple[int, ...] = (1,)) -> Config:
    return Config.model_validate(
        {
            "task": {"name": "fm-16"},
            "train": {"steps": 100, "seeds": list(seeds)},
            "output": {"folder": folder},
        }
    )


def event(step: int, outcome: str, *, horizon: int | None = None, reason: str = "") -> dict[str, Any]:
    return {"step": step, "kind": "nowcast", "outcome": outcome, "horizon": horizon, "reason": reason, "detail": "", "seconds": 0.1}


SLOW = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.4, 0.4, 0.4, 0.4]
FAST = [0.9, 0.7, 0.5, 0.4, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3]


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=30))
def test_smoothing_looks_back_only(values: list[float]) -> None:
    """A median that used later evaluations would let a run reach its target before it did."""
    smoothed = smooth(values)
    assert len(smoothed) == len(values)
    for end in range(1, len(values) + 1):
        assert smoothed[end - 1] == pytest.approx(np.median(values[max(0, end - 5) : end]))


def test_an_average_is_an_arm_of_its_own_measured_against_the_plain_ones_average(tmp_path: Path) -> None:
    """Averaging alone would pass for what nowcasts gain, or the other way round."""

    def averaging(arm: str, losses: list[float], averages: list[float], events: list[dict[str, Any]] | None = None) -> RunRecord:
        record, other = run(arm, 1, losses, events=events), run(arm, 1, averages)
        pairs = zip(record.evaluations, other.evaluations, strict=True)
        evaluations = [one.model_copy(update={"averaged": Scores(validation=two.validation, test=two.test)}) for one, two in pairs]
        return record.model_copy(update={"evaluations": evaluations})

    faster = [0.8, 0.6, 0.4, 0.3, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2]
    runs = [averaging("adam", SLOW, FAST), averaging("adam+x", FAST, faster, events=[event(30, "glided")])]
    summary = summarise(config(tmp_path), runs, server=None, wall_s=1.0)
    names = ["adam", "adam+x", "adam, averaged", "adam+x, averaged"]
    assert [arm.arm for arm in summary.arms] == names
    assert [figures.target for figures in summary.figures] == pytest.approx([0.4, 0.4, 0.3, 0.3])
    assert [arm.steps_to_target for arm in summary.arms] == [80, 60, 70, 60]
    assert [arm.fewer_steps for arm in summary.arms] == pytest.approx([0, 1 / 4, 0, 1 / 7])
    assert [arm.nowcasts for arm in summary.arms] == [{}, {"glided": 1}, {}, {}]
    report.write(summary)
    console = Console(file=io.StringIO(), width=160)
    report.show(summary, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(name in text for name in names)
    assert "0.400, the plain run's best (of averages: its average's)" in text


def test_a_single_spike_leaves_no_trace() -> None:
    """An evaluation right after a jump says nothing about the steps around it."""
    assert smooth([3.0, 3.0, 2.0, 2.0, 50.0, 2.0, 2.0]) == [3.0, 3.0, 3.0, 2.5, 3.0, 2.0, 2.0]


def test_the_plain_runs_best_is_the_target(tmp_path: Path) -> None:
    """Steps to target: the first at which the smoothed validation loss is as low as the plain run's ever was."""
    summary = summarise(config(tmp_path), [run("adam", 1, SLOW), run("adam+x", 1, FAST)], server=None, wall_s=1.0)
    plain, other = summary.figures
    assert plain.target == other.target == pytest.approx(0.4)
    assert (plain.steps_to_target, other.steps_to_target) == (80, 60)  # with 0.6 0.5 0.4 0.4 0.4 and 0.7 0.5 0.4 0.3 0.3
    assert summary.arms[1].fewer_steps == pytest.approx(0.25)
    assert other.best.loss == pytest.approx(0.4)
    assert summary.arms[1].step_s == pytest.approx(0.01)


def test_each_seed_has_its_own_target_and_arms_their_median(tmp_path: Path) -> None:
    """Seeds differ more than arms do; comparing across them would drown the difference."""
    better = [loss - 0.1 for loss in SLOW]
    runs = [
        run(arm, seed, losses)
        for seed, plain, other in ((1, SLOW, FAST), (2, better, FAST), (3, SLOW, better))
        for arm, losses in (("adam", plain), ("adam+x", other))
    ]
    summary = summarise(config(tmp_path, seeds=(1, 2, 3)), runs, server=None, wall_s=1.0)
    assert [figures.target for figures in summary.figures] == pytest.approx([0.4, 0.4, 0.3, 0.3, 0.4, 0.4])
    assert [figures.steps_to_target for figures in summary.figures if figures.arm == "adam+x"] == [60, 70, 70]
    assert summary.arms[1].steps_to_target == 70
    assert summary.arms[1].seeds == 3


def test_runs_that_never_arrive_count_as_slowest(tmp_path: Path) -> None:
    """Leaving them out would make the arm that fails most look fastest."""
    runs = [
        run(arm, seed, losses)
        for seed in (1, 2, 3)
        for arm, losses in (("adam", SLOW), ("adam+x", FAST if seed == 1 else [0.9] * 10))
    ]
    arm = summarise(config(tmp_path, seeds=(1, 2, 3)), runs, server=None, wall_s=1.0).arms[1]
    assert (arm.reached, arm.steps_to_target, arm.fewer_steps) == (1, None, None)


NAN = float("nan")


@pytest.mark.parametrize(
    ("losses", "target", "reached"),
    [
        ((SLOW, [0.9, 0.8, *[NAN] * 8]), 0.4, [80, None]),
        (([0.9, 0.8, *[NAN] * 8], FAST), 0.85, [20, 20]),
        (([NAN] * 10, FAST), math.inf, [None, None]),
        (([NAN] * 10, [NAN] * 10), math.inf, [None, None]),
    ],
    ids=["with nowcasts", "plain", "plain, at once", "all"],
)
def test_a_run_that_diverged_is_reported(
    tmp_path: Path, losses: tuple[list[float], list[float]], target: float, reached: list[int | None]
) -> None:
    """It would take the report of all runs along, count as the best of them, or make the comparison impossible to resume."""
    runs = [run("adam", 1, losses[0]), run("adam+x", 1, losses[1], events=[event(60, "glided")])]
    for each in runs:
        back = RunRecord.model_validate_json(each.model_dump_json())
        assert [evaluation.train_loss for evaluation in back.evaluations] == pytest.approx(
            [evaluation.train_loss for evaluation in each.evaluations], nan_ok=True
        )
    summary = summarise(config(tmp_path), runs, server=None, wall_s=1.0)
    assert summary.figures[0].target == pytest.approx(target)
    assert [figures.steps_to_target for figures in summary.figures] == reached
    path, picture, _ = report.write(summary)
    report.show(summary, Console(file=io.StringIO(), width=150))
    assert picture.stat().st_size > 1000
    back_again = Summary.model_validate_json(path.read_text())
    assert back_again.figures == summary.figures


def test_a_diverged_seed_counts_as_slowest(tmp_path: Path) -> None:
    """A median over NaN is whichever value happens to stand in the middle."""
    runs = [
        run(arm, seed, [NAN] * 10 if (arm, seed) == ("adam+x", 1) else SLOW) for seed in (1, 2, 3) for arm in ("adam", "adam+x")
    ]
    arm = summarise(config(tmp_path, seeds=(1, 2, 3)), runs, server=None, wall_s=1.0).arms[1]
    assert (arm.reached, arm.steps_to_target) == (2, 80)


def test_the_table_says_what_was_skipped_and_why(tmp_path: Path) -> None:
    """Someone whose server was down must see it where they look first."""
    events = [event(50, "glided"), event(60, "skipped", reason="server_unavailable")]
    runs = [run("adam", 1, SLOW), run("adam+x", 1, FAST, events=events)]
    console = Console(file=io.StringIO(), width=150)
    report.show(summarise(config(tmp_path), runs, server=None, wall_s=61.0), console)
    assert isinstance(console.file, io.StringIO)
    printed = console.file.getvalue()
    assert "60 (-25%)" in printed
    assert "1 glided, 1 skipped" in printed
    assert "adam+x, seed 1: 1 nowcast(s) skipped: server_unavailable" in printed
    assert "61 s in all" in printed


def test_the_table_says_what_forecasts_were_worth(tmp_path: Path) -> None:
    """In shadow mode there is nothing else to see."""
    skills = [{"5": {"nino": 0.3, "linear": -0.1}, "40": {"nino": 0.1, "linear": -0.9}}, {"5": {"nino": 0.5, "linear": 0.1}}]
    plain = [run("adam", seed, SLOW) for seed in (1, 2)]
    others = [run("adam+nino", seed, FAST, events=[], skill=skill) for seed, skill in zip((1, 2), skills, strict=True)]
    summary = summarise(config(tmp_path, seeds=(1, 2)), [*plain, *others], server=None, wall_s=1.0)
    assert [run.skill for run in summary.runs] == [{}, {}, *skills]
    assert summary.arms[1].skill == pytest.approx({"nino": 0.3, "linear": -0.3})
    for mode, shown in (("shadow", True), ("glide", False)):  # of a forecast that pushes only the direction counts
        table = summary.config.model_copy(update={"nowcast": NowcastTable(mode=mode)})
        console = Console(file=io.StringIO(), width=150)
        report.show(summary.model_copy(update={"config": table}), console)
        assert isinstance(console.file, io.StringIO)
        assert ("nino +0.30, linear -0.30" in console.file.getvalue()) == shown


def test_the_picture_shows_both_arms_and_the_jumps(tmp_path: Path) -> None:
    """The arms' colours must be in it, grey for the plain one and orange for the other; and lines where there were jumps."""
    drawn = {}
    for name, events in (("without", []), ("with", [event(20, "jumped", horizon=4), event(60, "jumped", horizon=2)])):
        folder = tmp_path / name
        summary = summarise(config(folder), [run("adam", 1, SLOW), run("adam+x", 1, FAST, events=events)], server=None, wall_s=1.0)
        _, path, _ = report.write(summary)
        with Image.open(path) as image:
            drawn[name] = np.asarray(image.convert("RGB")).copy()
        for colour in ((0x64, 0x74, 0x8B), (0xEA, 0x58, 0x0C)):
            assert (drawn[name] == colour).all(-1).sum() > 500
    assert (drawn["with"] != drawn["without"]).any(-1).sum() > 500
