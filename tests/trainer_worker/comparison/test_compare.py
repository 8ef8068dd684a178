"""Comparisons that are interrupted and gone on with, and what a resumed run must have in common with the one that was begun."""

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from interrupts import interrupted
from rich.console import Console
from small_runs import without_times

from trainer_worker.comparison.compare import compare
from trainer_worker.comparison.summary import Summary
from trainer_worker.errors import BadArgument
from trainer_worker.tasks.task import Task
from trainer_worker.training import loop
from trainer_worker.training.config import Config
from trainer_worker.training.records import Evaluation, Order, RunRecord, Score, begin, finished, keep


def config_of(folder: Path, **changes: Any) -> Config:
    """Of a small comparison in this process; `changes` are by table__key."""
    tables: dict[str, dict[str, Any]] = {
        "task": {"name": "fm-16"},
        "train": {"steps": 6, "batch_size": 8, "eval_every": 2, "checkpoint_every": 2},
        "nowcast": {"server": "embedded", "forecaster": "linear", "interval": 1, "start": 0.0},
        "workers": {"count": 0, "threads": 1},
        "output": {"folder": folder},
    }
    for place, value in changes.items():
        table, key = place.split("__")
        tables[table][key] = value
    return Config.model_validate(tables)


def run(folder: Path, *, resume: bool = False, **changes: Any) -> Summary:
    return compare(config_of(folder, **changes), console=Console(quiet=True), resume=resume)


def curves(summary: Summary) -> list[list[dict[str, Any]]]:
    return [without_times(run) for run in summary.runs]


def test_an_interrupted_comparison_goes_on_with_its_own_configuration_alone(tmp_path: Path, small_fashion: Task) -> None:
    """The other arm's record of an earlier comparison in the same folder would be taken for this one's."""
    run(tmp_path / "a", train__lr=1e-3)
    with interrupted(loop, "train_in_process", at=2):
        run(tmp_path / "a", train__lr=3e-2)
    with pytest.raises(BadArgument, match=r"train.lr = 0.03, not 0.001"):
        run(tmp_path / "a", train__lr=1e-3, resume=True)
    assert curves(run(tmp_path / "a", train__lr=3e-2, resume=True)) == curves(run(tmp_path / "b", train__lr=3e-2))


def test_a_finished_comparison_is_read_back_or_made_longer(tmp_path: Path, small_fashion: Task) -> None:
    """Finished runs would be trained again; or an older, shorter one would pass for the longer."""
    first = run(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train_in_process", Mock(side_effect=AssertionError))
        assert run(tmp_path, resume=True).runs == first.runs
    longer = run(tmp_path, train__steps=8, resume=True)
    assert [(run.restores, run.evaluations[-1].step) for run in longer.runs] == [(1, 8), (1, 8)]
    with pytest.raises(BadArgument, match=r"train.steps = 8, not 6"):
        run(tmp_path, resume=True)


def orders(folder: Path, **changes: Any) -> list[Order]:
    config = config_of(folder, **changes)
    arms = [config.model_copy(update={"nowcast": None}), config]
    return [Order(config=arm, seed=seed, job="job") for seed in config.train.seeds for arm in arms]


def record(order: Order) -> RunRecord:
    score = Score(loss=float("nan"), accuracy=0.1)
    last = Evaluation(step=order.config.train.steps, train_loss=1.0, validation=score, test=score, train_s=1.0)
    about = {"arm": order.config.arm, "seed": order.seed, "terms": order.terms, "parameters": 1, "restores": 0, "events": []}
    return RunRecord.model_validate({**about, "evaluations": [last], "nowcast": None})


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A folder with the records of a finished comparison."""
    for order in orders(tmp_path):
        keep(order, record(order))
    return tmp_path


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"train__lr": 1.0}, r"adam-seed1000 was started with train.lr = 0.006, not 1.0: use .* --fresh, .* --out"),
        ({"train__steps": 5}, "train.steps = 6, not 5"),
        ({"train__eval_every": 7, "task__examples": 9}, "task.examples = None, not 9, train.eval_every = 2, not 7"),
        ({"nowcast__mode": "jump"}, r"adam\+linear-seed1000 .*nowcast.mode = glide, not jump"),
        ({"workers__count": 2}, "workers.count = 0, not 2"),
    ],
    ids=lambda given: ", ".join(given) if isinstance(given, dict) else "",
)
def test_a_run_of_another_configuration_is_refused(kept: Path, change: dict[str, Any], says: str) -> None:
    """A comparison would be of two configurations, and say it was of one."""
    with pytest.raises(BadArgument, match=says):
        begin(orders(kept, **change), resume=True)
    assert len(list((kept / "runs").iterdir())) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"train__steps": 40},
        {"train__seeds": [1000, 1001]},
        {"nowcast__server": "http://elsewhere:8440", "nowcast__timeout_s": 60.0, "nowcast__record": True},
        {"task__data": "/elsewhere", "workers__threads": 2},
    ],
    ids=", ".join,
)
def test_what_does_not_change_a_run_may_change(kept: Path, change: dict[str, Any]) -> None:
    """A run could not be made longer, or go on after its server has moved."""
    later = orders(kept, **change)
    begin(later, resume=True)
    same = "train__steps" not in change
    assert [finished(order) is not None for order in later[:2]] == [same, same]


def test_without_resume_nothing_is_left_of_any_arm(kept: Path) -> None:
    """An interrupted comparison would go on with the other arm's record of the one before."""
    for order in orders(kept):
        (kept / "checkpoints" / order.name).mkdir(parents=True)
    begin(orders(kept, train__lr=1.0), resume=False)
    assert [*(kept / "runs").iterdir(), *(kept / "checkpoints").iterdir()] == []


def test_a_record_that_was_cut_off_is_made_again(kept: Path) -> None:
    """The command would end with a traceback, or train a finished run again."""
    (kept / "runs" / "adam-seed1000.json").write_text('{"terms": {')
    begin(orders(kept), resume=True)
    assert [finished(order) is None for order in orders(kept)] == [True, False]
