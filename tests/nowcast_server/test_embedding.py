"""The map of training: vectors that do not depend on how neurons are numbered, axes that stay."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import random_states
from torch import nn
from typer.testing import CliRunner

from nowcast_server.cli import app
from nowcast_server.forecasters import load_forecaster
from nowcast_server.nino.embed import Embedder, Projection
from nowcast_server.trajectories.store import TrajectoryWriter
from trainer_worker.wiring import wire

IN, MID, OUT = 3, 4, 2
WIRING = wire(nn.Sequential(nn.Linear(IN, MID, bias=False), nn.Linear(MID, OUT, bias=False)))


def renumbered(flat: torch.Tensor, order: list[int]) -> torch.Tensor:
    """The same network with its hidden neurons in another order."""
    up, down = flat[:, : MID * IN].view(-1, MID, IN), flat[:, MID * IN :].view(-1, OUT, MID)
    return torch.cat([up[:, order].flatten(1), down[:, :, order].flatten(1)], dim=1)


def test_vector_does_not_depend_on_how_neurons_are_numbered() -> None:
    """Runs of different seeds could not be compared, and the map would show nothing but seeds."""
    embedder, states = Embedder(load_forecaster("nino").checkpoint, WIRING), random_states(WIRING, seed=1)
    one, other = embedder.embed(states), embedder.embed(renumbered(states, [2, 0, 3, 1]))
    assert one.shape == (64,)
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)
    assert (one - embedder.embed(random_states(WIRING, seed=2))).abs().max() > 1e-2


def test_projection_is_that_of_the_largest_variance() -> None:
    """The map would be drawn along axes on which runs hardly differ, or mirrored from one time to the next."""
    vectors = np.random.default_rng(0).normal(size=(50, 6)) * np.array([9, 4, 1, 1, 1, 1])
    projection = Projection.fit(vectors)
    assert np.abs(projection.components).argmax(1).tolist() == [0, 1]
    assert (projection.components.max(1) > 0.9).all()
    again = Projection.fit(vectors[::-1])
    np.testing.assert_allclose(projection.components, again.components, atol=1e-8)


def test_command_writes_a_row_for_each_context_on_axes_that_stay(tmp_path: Path) -> None:
    """The table would not say where a run was, or count contexts across a jump; what is on a map move when a run is added; or a
    file that is not there end in a traceback.
    """
    folder = tmp_path / "runs"
    for name, seed, jumped in (("a", 1, False), ("b", 2, True)):
        values = random_states(WIRING, context=8, seed=seed).numpy()
        header = {"wiring": WIRING.to_dict(), "lr": 0.1 * seed}
        with TrajectoryWriter(folder / f"{name}.trajectory", values[0], header=header) as writer:
            for index, row in enumerate(values):
                writer.append(10 * (index + 1), row, loss=1.0 / (index + 1), segment=int(jumped and index >= 3))

    def embed(out: str, *options: str) -> Path:
        done = CliRunner().invoke(app, ["embed", str(folder), "--out", str(tmp_path / out), *options])
        assert done.exit_code == 0, done.output
        return tmp_path / out

    rows = list(csv.DictReader(embed("map.csv").open()))
    steps = [*(("a.trajectory", str(step)) for step in (50, 60, 70, 80)), ("b.trajectory", "80")]
    assert [(row["run"], row["step"]) for row in rows] == steps
    assert {row["nearest_run"] for row in rows[:4]} == {"b.trajectory"}
    assert rows[0]["lr"] == "0.1"
    assert float(rows[0]["nearest_ended_at"]) == pytest.approx(1 / 8)
    one = embed("one.npz")
    alone = tmp_path / "alone"
    alone.mkdir()
    (folder / "b.trajectory").rename(alone / "b.trajectory")
    with np.load(one) as before, np.load(embed("two.npz", "--basis", str(one))) as after:
        np.testing.assert_allclose(before["x"][:4], after["x"], atol=1e-6)
        assert after["vectors"].shape == (4, 64)
    done = CliRunner().invoke(app, ["embed", str(alone), "--out", str(tmp_path / "none.csv")])
    assert (done.exit_code, "a map needs two contexts" in done.output) == (2, True), done.output
    embed("three.csv", "--basis", str(one))
    for wrong in (["--basis", "none.npz"], ["--basis", str(tmp_path / "map.csv")], ["--out", str(tmp_path / "none" / "map.csv")]):
        done = CliRunner().invoke(app, ["embed", str(folder), *wrong])
        assert (done.exit_code, done.output[:16]) == (1, "nowcast-server: "), done.exception
