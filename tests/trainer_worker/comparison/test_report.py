"""From the records of runs to figures, a table, a picture, and one HTML file that needs nothing else."""

import io
import math
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from trainer_worker.cli import app
from trainer_worker.comparison import report
from trainer_worker.comparison.summary import Summary, Verdict, summarise
from trainer_worker.training.config import Config, NowcastTable
from trainer_worker.training.records import Evaluation, RunRecord, Score

NAN = float("nan")
SLOW = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.4, 0.4, 0.4, 0.4]
FAST = [0.9, 0.7, 0.5, 0.4, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3]


def event(step: int, outcome: str, *, reason: str = "") -> dict[str, Any]:
    return {"step": step, "kind": "nowcast", "outcome": outcome, "horizon": None, "reason": reason, "detail": "", "seconds": 0.1}


def run(
    arm: str, seed: int, losses: Sequence[float], *, events: Sequence[dict[str, Any]] = (), step_s: float = 0.01, **nowcast: Any
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
    about = {"arm": arm, "seed": seed, "terms": {}, "parameters": 1, "restores": 0, "wall_s": 9.0, "events": list(events)}
    return RunRecord.model_validate({**about, "evaluations": evaluations, "nowcast": nowcast or None})


def summary_of(folder: Path, *runs: RunRecord, steps: int = 100) -> Summary:
    seeds = sorted({run.seed for run in runs})
    settings = {"task": {"name": "fm-16"}, "train": {"steps": steps, "seeds": seeds}, "output": {"folder": folder}}
    return summarise(Config.model_validate(settings), runs, wall_s=61.0)


def pairs(*losses: tuple[list[float], list[float]]) -> list[RunRecord]:
    """Of each seed a run without and one with nowcasts."""
    return [run(arm, seed, each) for seed, both in enumerate(losses, 1) for arm, each in zip(("adam", "adam+x"), both, strict=True)]


def compared(folder: Path, *, seeds: int = 3, speed: float = 1.5) -> Summary:
    """500 steps of Adam, and of Adam with nowcasts at another speed; a step with nowcasts takes a tenth longer."""

    def losses(draw: random.Random, speed: float) -> list[float]:
        return [0.3 + 2 * math.exp(-speed * step / 100) + draw.gauss(0, 0.002) for step in range(10, 501, 10)]

    events = [event(20, "glided")] * 30 + [event(20, "skipped", reason="late")] * 2
    about = {"waited_s": 0.4, "copied_s": 0.2, "skill": {}, "layers": {"conv<1>": 0.5, "head": -0.1}}
    runs = []
    for seed in range(1, seeds + 1):
        runs.append(run("adam", seed, losses(random.Random(seed), 1.0)))
        runs.append(run("adam+linear", seed, losses(random.Random(-seed - 99), speed), events=events, step_s=0.011, **about))
    return summary_of(folder, *runs, steps=500)


def table(summary: Summary) -> str:
    console = Console(file=io.StringIO(), width=160)
    report.show(summary, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_plain_runs_best_is_the_target(tmp_path: Path) -> None:
    """Steps to target: the first at which the smoothed validation loss is as low as the plain run's ever was."""
    summary = summary_of(tmp_path, *pairs((SLOW, FAST)))
    plain, other = summary.figures
    assert plain.target == other.target == pytest.approx(0.4)
    assert (plain.steps_to_target, other.steps_to_target) == (80, 60)  # with 0.6 0.5 0.4 0.4 0.4 and 0.7 0.5 0.4 0.3 0.3
    assert summary.arms[1].fewer_steps == pytest.approx(0.25)
    assert other.best.loss == pytest.approx(0.4)
    assert summary.arms[1].step_s == pytest.approx(0.01)


def test_each_seed_has_its_own_target_and_arms_their_median(tmp_path: Path) -> None:
    """Seeds differ more than arms do; comparing across them would drown the difference."""
    better = [loss - 0.1 for loss in SLOW]
    summary = summary_of(tmp_path, *pairs((SLOW, FAST), (better, FAST), (SLOW, better)))
    assert [figures.target for figures in summary.figures] == pytest.approx([0.4, 0.4, 0.3, 0.3, 0.4, 0.4])
    assert [figures.steps_to_target for figures in summary.figures if figures.arm == "adam+x"] == [60, 70, 70]
    assert (summary.arms[1].steps_to_target, summary.arms[1].seeds) == (70, 3)


@pytest.mark.parametrize(
    ("others", "found"),
    [((FAST, [0.9] * 10, [0.9] * 10), (1, None, None)), (([NAN] * 10, SLOW, SLOW), (2, 80, 0.0))],
    ids=["never there", "diverged"],
)
def test_runs_that_never_arrive_count_as_slowest(
    tmp_path: Path, others: tuple[list[float], ...], found: tuple[int, float | None, float | None]
) -> None:
    """Leaving them out would make the arm that fails most look fastest; a median over NaN is whichever stands in the middle."""
    arm = summary_of(tmp_path, *pairs(*((SLOW, other) for other in others))).arms[1]
    assert (arm.reached, arm.steps_to_target, arm.fewer_steps) == found


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
    summary = summary_of(tmp_path, *pairs(losses))
    for each in summary.runs:
        back = RunRecord.model_validate_json(each.model_dump_json())
        assert [one.train_loss for one in back.evaluations] == pytest.approx(
            [one.train_loss for one in each.evaluations], nan_ok=True
        )
    assert summary.figures[0].target == pytest.approx(target)
    assert [figures.steps_to_target for figures in summary.figures] == reached
    path, picture, page = report.write(summary)
    assert table(summary)
    assert picture.stat().st_size > 1000
    assert not re.search(r"\bnan\b", page.read_text(), re.IGNORECASE)
    assert report.read(path).figures == summary.figures


def test_the_table_says_what_was_skipped_and_why(tmp_path: Path) -> None:
    """Someone whose server was down must see it where they look first."""
    events = [event(50, "glided"), event(60, "skipped", reason="server_unavailable")]
    shown = table(summary_of(tmp_path, run("adam", 1, SLOW), run("adam+x", 1, FAST, events=events)))
    for part in ("60 (-25%)", "1 glided, 1 skipped", "adam+x, seed 1: 1 nowcast(s) skipped: server_unavailable", "61 s in all"):
        assert part in shown


def test_the_table_says_what_forecasts_were_worth(tmp_path: Path) -> None:
    """In shadow mode there is nothing else to see."""
    skills = [{"5": {"nino": 0.3, "linear": -0.1}, "40": {"nino": 0.1, "linear": -0.9}}, {"5": {"nino": 0.5, "linear": 0.1}}]
    plain = [run("adam", seed, SLOW) for seed in (1, 2)]
    summary = summary_of(tmp_path, *plain, *(run("adam+nino", seed, FAST, skill=skill) for seed, skill in enumerate(skills, 1)))
    assert [run.skill for run in summary.runs] == [{}, {}, *skills]
    assert summary.arms[1].skill == pytest.approx({"nino": 0.3, "linear": -0.3})
    for mode, shown in (("shadow", True), ("glide", False)):  # of a forecast that pushes only the direction counts
        config = summary.config.model_copy(update={"nowcast": NowcastTable(mode=mode)})  # type: ignore[arg-type]
        assert ("nino +0.30, linear -0.30" in table(summary.model_copy(update={"config": config}))) == shown


def test_the_picture_shows_both_arms(tmp_path: Path) -> None:
    """The arms' colours must be in it, grey for the plain one and orange for the other."""
    _, path, _ = report.write(summary_of(tmp_path, run("adam", 1, SLOW), run("adam+x", 1, FAST)))
    with Image.open(path) as image:
        drawn = np.asarray(image.convert("RGB"))
    for colour in ((0x64, 0x74, 0x8B), (0xEA, 0x58, 0x0C)):
        assert (drawn == colour).all(-1).sum() > 500


def test_report_answers_the_four_questions(tmp_path: Path) -> None:
    """Someone new would have to ask what the curves mean."""
    text = report.write_page([compared(tmp_path)], tmp_path / "report.html").read_text()
    for answer in (
        "Yes: fewer steps with every seed.",
        "fewer steps",
        "+10% against the plain run&#39;s 10.00 ms",
        "Forecasts used: 90; skipped: 6 (6 late).",
        "in the mean of 3 seeds",
        "<b>adam</b> is the job without nowcasts, <b>adam+linear</b> the same with them.",
        "<td>conv&lt;1&gt;</td>",
        "<td>+0.50</td>",
    ):
        assert answer in text, answer


def test_curves_can_be_opened_in_tensorboard(tmp_path: Path) -> None:
    """Who keeps all runs in one place could not put these beside them; or would see those of the comparison before."""
    for speed in (1.0, 1.5):
        report.write_events(compared(tmp_path, seeds=1, speed=speed), tmp_path / "events")
    assert sorted(folder.name for folder in (tmp_path / "events").iterdir()) == ["adam+linear-seed1", "adam-seed1"]
    (file,) = (tmp_path / "events" / "adam+linear-seed1").iterdir()
    content = file.read_bytes()
    assert [content.count(tag) for tag in (b"loss/train", b"loss/validation", b"nowcast/used")] == [50, 50, 32]


@pytest.mark.parametrize(
    ("seeds", "speed", "answer", "says"),
    [
        (3, 1.5, "Yes", "more than what chance explains"),
        (3, 0.7, "No:", "more than what chance explains"),
        (3, 1.0, "", "within what chance explains"),
        (1, 1.5, "One seed only", "run 3 seeds or more"),
        (2, 1.5, "Two seeds only", "run 3 seeds or more"),
    ],
)
def test_verdict_needs_every_seed_and_enough_of_them(tmp_path: Path, seeds: int, speed: float, answer: str, says: str) -> None:
    """A lucky run would be reported as a gain, or differences that chance explains be sold as an effect."""
    verdict = Verdict(compared(tmp_path, seeds=seeds, speed=speed))
    assert verdict.answer.startswith(answer)
    assert any(says in each for each in verdict.trust), verdict.trust
    assert any("run 3 seeds or more" in each for each in verdict.trust) == (seeds < 3)


def test_seeds_that_disagree_are_no_gain(tmp_path: Path) -> None:
    """Two good seeds would hide the third, which diverged."""
    verdict = Verdict(summary_of(tmp_path, *pairs((SLOW, FAST), (SLOW, [*FAST[:2], *[NAN] * 8]), (SLOW, FAST))))
    assert verdict.answer == "Not clearly: seeds disagree."


def test_runs_that_diverged_are_named(tmp_path: Path) -> None:
    """The reader would look for seeds that disagree, or believe that there was one, and never hear that the others broke."""
    verdict = Verdict(summary_of(tmp_path, *pairs(*[([NAN] * 10, FAST)] * 3)))
    assert verdict.answer == "No answer: the plain run diverged."
    assert "lower the learning rate" in verdict.helped
    verdict = Verdict(summary_of(tmp_path, *pairs((SLOW, FAST), (SLOW, [NAN] * 10), (SLOW, [NAN] * 10))))
    assert verdict.trust[0] == "Diverged: 0 of 3 plain runs, 2 with nowcasts."
    assert not any("one seed" in each for each in verdict.trust)


def test_report_loads_nothing_and_runs_nothing(tmp_path: Path) -> None:
    """The file would be blank without a network, or run what a name holds."""
    named = compared(tmp_path).model_copy(update={"name": "<script>alert(1)</script>"})
    text = report.write_page([named], tmp_path / "report.html").read_text()
    assert "<script" not in text
    assert re.findall(r"""(?:src|href|url)\s*[=(]["']?[^#"']""", text) == []  # but to what is in it


def test_command_writes_one_report_of_several_comparisons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Comparisons could not be put side by side."""
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "summary.json").write_text(compared(folder).model_dump_json())
    assert CliRunner().invoke(app, ["report", "one"]).output == "wrote one/report.html\n"
    assert CliRunner().invoke(app, ["report", "one", "two"]).exit_code == 0
    assert (tmp_path / "report.html").read_text().count("<section>") == 2
    Path("map.svg").write_text("<?xml version='1.0'?><svg class='map'></svg>")
    assert CliRunner().invoke(app, ["report", "one", "--map", "map.svg"]).exit_code == 0
    assert "<figure><svg class='map'></svg></figure>" in Path("one/report.html").read_text()
    assert "has to be an SVG picture" in CliRunner().invoke(app, ["report", "one", "--map", "one/summary.json"]).output
    failed = CliRunner().invoke(app, ["report", "three"])
    assert failed.exit_code == 2
    assert "three: no results of a comparison" in failed.output
