"""Forecasters judged by the steps that gliding along them saves."""

import math
from pathlib import Path
from statistics import stdev

import pytest
from typer.testing import CliRunner

from nowcast_server.forecasters.registry import SHIPPED
from trainer_worker.metatrain import by_loss as judging
from trainer_worker.metatrain.by_loss import Compared, by_loss, falls, steps_saved, table
from trainer_worker.metatrain.cli import app
from trainer_worker.metatrain.library import Library

WEIGHTS = SHIPPED / "wnn-base.safetensors"


FALLING = [8.0, 6.0, 4.0, 2.0]  # after a quarter, half, three quarters and all of a plain run


@pytest.mark.parametrize(
    ("plain", "loss", "saved"),
    [
        (FALLING, 6.0, 0.0),
        (FALLING, 3.0, 1 - 1 / 1.75),
        (FALLING, 1.0, 0.5),
        (FALLING, 7.0, 1 - 1 / 0.75),
        (FALLING, 20.0, -1.0),
        ([5.0, 6.0, 4.0, 6.0], 6.0, 0.0),
        ([5.0, 5.0, 5.0, 5.0], 5.0, 0.0),
    ],
)
def test_steps_saved(plain: list[float], loss: float, saved: float) -> None:
    """A forecaster would be said to save steps that it costs."""
    assert math.isclose(steps_saved(plain, loss), saved)


@pytest.mark.parametrize(
    ("plain", "falling"),
    [(FALLING, True), ([8.0, 6.0, 6.9, 4.1], True), ([8.0, 6.0, 7.1, 4.1], False), ([9.0, 5.0, 5.0, 5.0], False)],
)
def test_a_loss_that_no_longer_falls(plain: list[float], *, falling: bool) -> None:
    """At the bottom of a loss, noise would count as steps."""
    assert falls(plain) is falling


def test_states_summed_up() -> None:
    """One state that went astray would decide; or what states differ by would hide what forecasters differ by."""
    saved = [-1.0, 0.1, 0.2, 0.3, 0.4]
    found = [Compared("gpt", {"linear": share, "better": share + 0.05}) for share in saved] + [Compared("mlp", {})]
    rows = list(table(found))
    assert [(row.forecaster, row.kind, row.states) for row in rows] == [
        (name, kind, 5) for kind in ("gpt", "all") for name in ("linear", "better")
    ]
    assert rows[0].saved == pytest.approx((0.2, stdev([0.1, 0.1, 0.2, 0.3, 0.3]) * math.sqrt(5) / 3))
    assert rows[1].saved[0] == pytest.approx(0.25)
    assert rows[1].ahead == pytest.approx((0.05, 0.0))
    assert list(table([Compared("mlp", {})])) == []


def test_what_never_pushes_saves_nothing(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that differ in more than their pushes, such as their batches or their first weights, would be compared."""
    monkeypatch.setattr(judging, "AHEAD", 10)
    monkeypatch.setattr(judging, "falls", lambda plain: True)
    group = Library.open(runs).validation[0]
    before = group.runs[0].states(slice(None)).copy()
    found = list(by_loss([group], {"none": "last", "linear": "linear"}, runs=1))
    assert len(found) == len(judging.PLACES)
    assert [compared.saved["none"] for compared in found] == [0.0] * len(found)
    assert all(compared.saved["linear"] != 0 for compared in found)
    assert (group.runs[0].states(slice(None)) == before).all()


def test_the_command(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one figure that counts could not be had without writing a program; nor where jobs are told of a server."""
    monkeypatch.setattr(judging, "AHEAD", 10)
    said = CliRunner().invoke(
        app, ["judge", str(runs), str(WEIGHTS), "--by-loss"], env={"COLUMNS": "200", "NOWCAST_SERVER": "http://127.0.0.1:1"}
    )
    assert said.exit_code == 0, said.output
    assert "wnn-base" in said.output
    assert "%" in said.output
