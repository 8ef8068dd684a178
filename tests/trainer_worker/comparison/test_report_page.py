"""The report as one HTML file: what it claims, and that it needs nothing else."""

import math
import random
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from trainer_worker.cli import app
from trainer_worker.comparison.report import render, write
from trainer_worker.comparison.summary import Summary, summarise
from trainer_worker.comparison.verdict import verdicts
from trainer_worker.training.config import Config
from trainer_worker.training.records import Evaluation, RunRecord, Score


def run(arm: str, seed: int, *, speed: float, end: float = 0.3, step_s: float = 0.01) -> RunRecord:
    """A run of 1,000 steps whose loss falls to `end`."""
    draw = random.Random(f"{arm}{seed}")
    losses = [end + 2 * math.exp(-speed * step / 200) + draw.gauss(0, 0.002) for step in range(20, 1001, 20)]
    scores = [Score(loss=loss, accuracy=max(0.0, 1 - loss)) for loss in losses]
    evaluations = [
        Evaluation(step=20 * index, train_loss=score.loss, validation=score, test=score, train_s=20 * index * step_s)
        for index, score in enumerate(scores, start=1)
    ]
    layers = {"conv<1>": 0.5, "head": -0.1}
    nowcast = {"waited_s": 0.4, "copied_s": 0.2, "skill": {}, "layers": layers} if "+" in arm else None
    events = [
        {"step": 20, "kind": "nowcast", "outcome": outcome, "reason": reason, "detail": "", "seconds": 0.0, "horizon": None}
        for outcome, reason in [("glided", "")] * 30 + [("skipped", "late")] * 2
    ]
    return RunRecord(
        arm=arm, seed=seed, parameters=9, restores=0, evaluations=evaluations, events=events if nowcast else [], nowcast=nowcast
    )


def compared(folder: Path, *, seeds: tuple[int, ...] = (1, 2, 3), speed: float = 1.5) -> Summary:
    """Adam, and Adam with nowcasts at another speed; a step with nowcasts takes a tenth longer."""
    settings = {"task": {"name": "fm-16"}, "train": {"steps": 1000, "seeds": list(seeds)}, "output": {"folder": folder}}
    runs = [each for seed in seeds for each in (run("adam", seed, speed=1.0), run("adam+linear", seed, speed=speed, step_s=0.011))]
    return summarise(Config.model_validate(settings), runs, server=None, wall_s=1.0)


def test_report_answers_the_four_questions(tmp_path: Path) -> None:
    """Someone new would have to ask what the curves mean."""
    text = render([compared(tmp_path)])
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
        write(compared(tmp_path, seeds=(1,), speed=speed))
    assert sorted(folder.name for folder in (tmp_path / "events").iterdir()) == ["adam+linear-seed1", "adam-seed1"]
    (file,) = (tmp_path / "events" / "adam+linear-seed1").iterdir()
    content = file.read_bytes()
    assert [content.count(tag) for tag in (b"loss/train", b"loss/validation", b"nowcast/used")] == [50, 50, 32]


@pytest.mark.parametrize(
    ("seeds", "speed", "word"),
    [((1, 2, 3), 1.5, "helped"), ((1, 2, 3), 0.7, "did not help"), ((1,), 1.5, "one seed"), ((1, 2), 1.5, "few seeds")],
)
def test_verdict_needs_every_seed_and_enough_of_them(seeds: tuple[int, ...], speed: float, word: str, tmp_path: Path) -> None:
    """A lucky run would be reported as a gain."""
    (verdict,) = verdicts(compared(tmp_path, seeds=seeds, speed=speed))
    assert verdict.word == word
    assert any("run 3 seeds or more" in each for each in verdict.trust) == (len(seeds) < 3)


def test_arm_that_is_only_noise_apart_is_called_so(tmp_path: Path) -> None:
    """Differences that chance explains would be sold as an effect."""
    (verdict,) = verdicts(compared(tmp_path, speed=1.0))
    assert any("within what chance explains" in each for each in verdict.trust)


def test_report_loads_nothing_and_runs_nothing(tmp_path: Path) -> None:
    """The file would be blank without a network, or run what a name holds."""
    summary = compared(tmp_path)
    text = render([summary.model_copy(update={"name": "<script>alert(1)</script>"})])
    assert "<script" not in text
    assert re.findall(r"""(?:src|href|url)\s*[=(]["']?[^#"']""", text) == []  # but to what is in it


def test_diverged_run_is_drawn_as_far_as_it_goes(tmp_path: Path) -> None:
    """One NaN would break the whole report."""
    summary = compared(tmp_path)
    broken = [
        each.model_copy(update={"validation": Score(loss=math.nan, accuracy=0.0)}) if each.step > 200 else each
        for each in summary.runs[1].evaluations
    ]
    runs = [run if index != 1 else run.model_copy(update={"evaluations": broken}) for index, run in enumerate(summary.runs)]
    text = render([summarise(summary.config, runs, server=None, wall_s=1.0)])
    assert not re.search(r"\bnan\b", text, re.IGNORECASE)
    assert "Not clearly: seeds disagree." in text


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
    assert CliRunner().invoke(app, ["report", "one", "--map", "one/summary.json"]).exit_code == 2
    failed = CliRunner().invoke(app, ["report", "three"])
    assert failed.exit_code == 2
    assert "three: no results of a comparison" in failed.output
