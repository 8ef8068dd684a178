"""Comparisons that are interrupted and gone on with."""

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from trainer_worker.comparison.compare import compare
from trainer_worker.comparison.summary import Summary
from trainer_worker.errors import BadArgument
from trainer_worker.tasks.task import Task
from trainer_worker.training import loop
from trainer_worker.training.config import Config
from trainer_worker.training.records import RunRecord


def run(folder: Path, *, lr: float = 1e-3, steps: int = 6, resume: bool = False) -> Summary:
    """A small comparison in this process."""
    config = Config.model_validate(
        {
            "task": {"name": "fm-16"},
            "train": {"steps": steps, "batch_size": 8, "lr": lr, "eval_every": 2, "checkpoint_every": 2},
            "nowcast": {"server": "embedded", "forecaster": "linear", "interval": 1, "start": 0.0},
            "workers": {"count": 0, "threads": 1},
            "output": {"folder": folder},
        }
    )
    return compare(config, console=Console(quiet=True), resume=resume)


def curves(summary: Summary) -> list[list[dict[str, Any]]]:
    return [[evaluation.model_dump(exclude={"train_s"}) for evaluation in run.evaluations] for run in summary.runs]


def interrupt(monkeypatch: pytest.MonkeyPatch, *, run: int) -> None:
    """Ctrl-C when so many runs have ended."""
    train, begun = loop.train_in_process, []

    def interrupted(*args: Any, **options: Any) -> RunRecord:
        begun.append(args)
        if len(begun) > run:
            raise KeyboardInterrupt
        return train(*args, **options)

    monkeypatch.setattr(loop, "train_in_process", interrupted)


def test_an_interrupted_comparison_goes_on_with_its_own_configuration_alone(tmp_path: Path, small_fashion: Task) -> None:
    """The other arm's record of an earlier comparison in the same folder would be taken for this one's."""
    run(tmp_path / "a", lr=1e-3)
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, run=1)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "a", lr=3e-2)
    with pytest.raises(BadArgument, match=r"train.lr = 0.03, not 0.001"):
        run(tmp_path / "a", lr=1e-3, resume=True)
    assert curves(run(tmp_path / "a", lr=3e-2, resume=True)) == curves(run(tmp_path / "b", lr=3e-2))


def test_a_finished_comparison_is_read_back_or_made_longer(tmp_path: Path, small_fashion: Task) -> None:
    """Finished runs would be trained again; or an older, shorter one would pass for the longer."""
    first = run(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, run=0)
        assert run(tmp_path, resume=True).runs == first.runs
    longer = run(tmp_path, steps=8, resume=True)
    assert [(run.restores, run.evaluations[-1].step) for run in longer.runs] == [(1, 8), (1, 8)]
    with pytest.raises(BadArgument, match=r"train.steps = 8, not 6"):
        run(tmp_path, resume=True)
