"""The training loop in one process: exact resume, the same batches in both arms, what it tells and records."""

from pathlib import Path
from typing import Any

import pytest
import torch
from faulty_server import FaultyServer
from interrupts import interrupted
from small_runs import without_times

from trainer_worker.training.config import Config
from trainer_worker.training.loop import FolderHarness, train_in_process
from trainer_worker.training.records import Order

NOWCAST = {"server": "embedded", "forecaster": "linear", "interval": 2, "start": 0.0}
pytestmark = pytest.mark.usefixtures("small_fashion")


def order(
    folder: Path, *, nowcasts: bool, steps: int = 20, checkpoint_every: int = 1, average: float = 0.0, **options: object
) -> Order:
    config = Config.model_validate(
        {
            "task": {"name": "fm-16"},
            "train": {"steps": steps, "batch_size": 8, "eval_every": 5, "checkpoint_every": checkpoint_every, "average": average},
            "workers": {"count": 0, "threads": 1},
            "output": {"folder": folder},
            "nowcast": {**NOWCAST, **options} if nowcasts else None,
        }
    )
    return Order(config=config, seed=7, job="test")


def weights(folder: Path) -> torch.Tensor:
    (path,) = folder.glob("checkpoints/*/checkpoint.pt")
    return torch.cat([value.flatten() for value in torch.load(path, weights_only=True)["model"].values()])


def ignore(news: str) -> None:
    pass


@pytest.mark.parametrize(
    ("options", "outcomes", "stops"),
    [
        (None, {}, (13,)),
        ({}, {"glided": 4}, (9, 12, 13, 19)),
        ({"mode": "jump", "interval": 1, "horizon": 3}, {"jumped": 3}, (9, 10)),
    ],
    ids=["plain", "glide", "jump"],
)
def test_a_run_stopped_at_any_step_and_resumed_ends_in_the_same_bits(
    tmp_path: Path, options: dict[str, Any] | None, outcomes: dict[str, int], stops: tuple[int, ...]
) -> None:
    """Within a context, at a boundary, in a push, between evaluations: a restart must leave no trace in weights or curves."""
    given: dict[str, Any] = {"nowcasts": options is not None, "average": 0.9, **(options or {})}
    whole = train_in_process(order(tmp_path / "whole", **given), listen=ignore)
    assert whole.restores == 0
    assert whole.outcomes == outcomes
    for stop in stops:
        stopped = order(tmp_path / f"stopped-{stop}", **given)
        with interrupted(FolderHarness, "save", at=stop + 1):
            train_in_process(stopped, listen=ignore)
        resumed = train_in_process(stopped, listen=ignore)
        assert resumed.restores == 1
        assert without_times(resumed) == without_times(whole), stop
        assert [event["step"] for event in resumed.events] == [event["step"] for event in whole.events]
        assert torch.equal(weights(tmp_path / f"stopped-{stop}"), weights(tmp_path / "whole")), stop


def test_a_run_is_resumed_before_the_server_is_asked_and_tells_how_it_goes(tmp_path: Path, faulty: FaultyServer) -> None:
    """The server would take it for a run that begins, and end it when it has no room for one; and whoever watches not know."""
    job = order(tmp_path, nowcasts=True).model_copy(update={"server": faulty.url})
    with interrupted(FolderHarness, "save", at=8):
        train_in_process(job, listen=ignore)
    faulty.faults["register"].append("out_of_memory_budget")
    heard: list[str] = []
    record = train_in_process(job, listen=heard.append)
    assert record.restores == 1
    assert record.evaluations[-1].step == 20
    assert any(line.startswith("server at step") and "lost (out_of_memory_budget" in line for line in heard)
    assert any(line.startswith("step 20 of 20: validation loss ") and "forecasts {'used': " in line for line in heard)
    assert ("lost", "out_of_memory_budget") in [(event["outcome"], event["reason"]) for event in record.events]


def test_an_average_of_the_weights_is_evaluated_in_their_place(tmp_path: Path) -> None:
    """Single weights are noise to judge by, and the average is the strongest rival of a nowcast; the run itself stays the same."""
    plain, averaged = (
        train_in_process(order(tmp_path / str(average), nowcasts=True, average=average), listen=ignore) for average in (0.0, 0.9)
    )
    assert torch.equal(weights(tmp_path / "0.0"), weights(tmp_path / "0.9"))
    assert all(one.validation != other.validation for one, other in zip(plain.evaluations, averaged.evaluations, strict=True))


def test_nowcasts_change_nothing_before_the_first_push(tmp_path: Path) -> None:
    """Both arms must see the same weights and batches, or their difference is not the nowcasts'."""
    plain = train_in_process(order(tmp_path / "plain", nowcasts=False), listen=ignore)
    gliding = train_in_process(order(tmp_path / "gliding", nowcasts=True), listen=ignore)
    assert gliding.events[0]["step"] == 12
    assert without_times(gliding)[:2] == without_times(plain)[:2]  # at steps 5 and 10
    assert without_times(gliding)[2] != without_times(plain)[2]  # at step 15


def test_the_last_step_is_evaluated_and_kept(tmp_path: Path) -> None:
    """A run whose length is no multiple of anything must not lose its end."""
    record = train_in_process(order(tmp_path, nowcasts=False, steps=7, checkpoint_every=100), listen=ignore)
    assert [evaluation.step for evaluation in record.evaluations] == [5, 7]
    state = torch.load(tmp_path / "checkpoints" / "adam-seed7" / "checkpoint.pt", weights_only=True)
    assert state["step"] == 7
    longer = train_in_process(order(tmp_path, nowcasts=False, steps=12), listen=ignore)
    assert [evaluation.step for evaluation in longer.evaluations] == [5, 10, 12]  # those of a seed that joins it
