"""Forecasters judged by the steps that gliding along them saves."""

import math
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nowcast_server.forecasters.registry import SHIPPED
from trainer_worker.metatrain import by_loss as judging
from trainer_worker.metatrain.by_loss import by_loss, steps_saved, table
from trainer_worker.metatrain.cli import app
from trainer_worker.metatrain.library import Library

WEIGHTS = SHIPPED / "wnn-base.safetensors"


@pytest.mark.parametrize(
    ("plain", "loss", "saved"),
    [
        ([8.0, 6.0, 4.0, 2.0], 6.0, 0.0),
        ([8.0, 6.0, 4.0, 2.0], 3.0, 1 - 2 / 3.5),
        ([8.0, 6.0, 4.0, 2.0], 1.0, 0.5),
        ([8.0, 6.0, 4.0, 2.0], 7.0, 1 - 2 / 1.5),
        ([8.0, 6.0, 4.0, 2.0], 20.0, -1.0),
        ([5.0, 6.0, 4.0, 6.0], 6.0, 0.0),
        ([5.0, 5.0, 5.0, 5.0], 5.0, 0.0),
    ],
)
def test_steps_saved(plain: list[float], loss: float, saved: float) -> None:
    """A forecaster would be said to save steps that it costs."""
    assert math.isclose(steps_saved(plain, loss), saved)


def test_what_never_pushes_saves_nothing(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that differ in more than their pushes, such as their batches or their first weights, would be compared."""
    monkeypatch.setattr(judging, "AHEAD", 9)
    group = Library.open(runs).validation[0]
    before = group.runs[0].states(slice(None)).copy()
    found = list(by_loss([group], {"none": "last", "linear": "linear"}, runs=1))
    assert len(found) == len(judging.PLACES)
    assert [compared.saved["none"] for compared in found] == [0.0] * len(found)
    assert all(compared.saved["linear"] != 0 for compared in found)
    assert (group.runs[0].states(slice(None)) == before).all()
    rows = {(name, kind): (saved, count) for name, kind, saved, _, count in table(found)}
    assert rows["none", "all"] == rows["none", "mlp"] == (0.0, len(found))


def test_the_command(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one figure that counts could not be had without writing a program; nor where jobs are told of a server."""
    monkeypatch.setattr(judging, "AHEAD", 7)
    said = CliRunner().invoke(
        app, ["judge", str(runs), str(WEIGHTS), "--by-loss"], env={"COLUMNS": "200", "NOWCAST_SERVER": "http://127.0.0.1:1"}
    )
    assert said.exit_code == 0, said.output
    assert "wnn-base" in said.output
    assert "%" in said.output
