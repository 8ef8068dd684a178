"""Many checkpoints behind one endpoint: which there are, and that each job gets its own."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import random_checkpoint
from pydantic import ValidationError
from server_kit import Start, dense, read_forecasts, refused, until
from typer.testing import CliRunner

from nowcast_server.cli import app
from nowcast_server.forecasters import FORECASTERS, load_forecaster
from nowcast_server.forecasters.registry import load_forecasters
from nowcast_server.nino.checkpoint import CheckpointError, save_checkpoint
from nowcast_server.settings import FORECASTER_NAMES, CheckpointFile, Settings
from protos.wiring import Block, Parameter, Wiring

Make = Callable[..., Path]
KERNEL = Wiring((Parameter("conv", (2, 3, 3)),), 2, (Block(3, 0, 1, 1, 1, parameter=0, slots=9, slot_stride=1),))


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """`make(name)` writes a small checkpoint with weights that no other has; of a graph network, or else of an MLP."""

    def checkpoint(name: str, *, graph: bool = True, **given: Any) -> Path:
        made = random_checkpoint(seed=len(list(tmp_path.iterdir())), graph=graph, **given)
        save_checkpoint(replace(made, name=name), tmp_path / f"{name}.safetensors")
        return tmp_path / f"{name}.safetensors"

    return checkpoint


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("a.pt", CheckpointFile(Path("a.pt"))),
        ("vision=/models/a=b.pt", CheckpointFile(Path("/models/a=b.pt"), "vision")),
        ("/runs/lr=3/a.pt", CheckpointFile(Path("/runs/lr=3/a.pt"))),
        ("v2.1_b-x=a", CheckpointFile(Path("a"), "v2.1_b-x")),
    ],
)
def test_names_and_files_are_told_apart(text: str, read: CheckpointFile) -> None:
    """A path that holds `=` would be taken for a name, or a name for part of the path."""
    assert CheckpointFile.parse(text) == read


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["=a.pt"], "'' is no name"),
        ([f"{'x' * 65}=a.pt"], "is no name"),
        (["wnn=a.pt"], "'wnn' is a forecaster of every server"),
        (["vision="], "give vision=FILE"),
        (["vision=a.pt", "text=b.pt", "vision=b.pt"], "two checkpoints named 'vision'"),
    ],
)
def test_a_wrong_name_is_told_at_the_command_line(given: list[str], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server would start without the checkpoint, or with another under its name."""
    for command in ("run", "serve-on-ray"):
        result = CliRunner().invoke(app, [command, *(f"--checkpoint={text}" for text in given)], env={"COLUMNS": "300"})
        assert result.exit_code == 2
        assert says in result.output
        assert "--checkpoint" in result.output
        assert "Traceback" not in result.output
    monkeypatch.setenv("NOWCAST_CHECKPOINTS", os.pathsep.join(given))
    with pytest.raises(ValidationError, match=says):
        Settings()


def test_no_name_can_hide_a_forecaster() -> None:
    """A checkpoint could be named like a forecaster that has come since, and jobs would get the one for the other."""
    assert tuple(FORECASTERS) == FORECASTER_NAMES


def test_what_a_server_offers(make: Make) -> None:
    """A named checkpoint would push the package's own out, or one without a name would not take its place."""
    vision, other = make("vision"), make("other", graph=False)
    found = load_forecasters(Settings(checkpoints=[f"vision={vision}", f"small={other}", other]).checkpoints, device="cpu")
    assert list(found) == [*FORECASTERS, "vision", "small"]
    names = {name: each.checkpoint.name for name, each in found.items() if hasattr(each, "checkpoint")}
    assert names == {"nino": "nino-base", "wnn": "other", "vision": "vision", "small": "other"}
    with pytest.raises(CheckpointError, match=r"second checkpoint for 'nino'.*NAME=FILE"):
        load_forecasters(Settings(checkpoints=[vision, make("third")]).checkpoints, device="cpu")


def test_each_job_is_forecast_by_the_checkpoint_it_names(make: Make, start: Start) -> None:
    """Jobs that share a server would get each other's checkpoint; its memory would be nobody's."""
    files = {"vision": make("vision"), "text": make("text"), "plain": make("plain", graph=False)}
    caller = start(wiring=dense(10, 20), checkpoints=[f"{name}={path}" for name, path in files.items()], device="cpu")
    service, client = caller.service, caller.client
    weights_bytes = service.forecasts.used_bytes
    assert weights_bytes >= 4 * sum(each.checkpoint.size for each in map(service.forecasters.get, files))
    assert {"nino", "linear", *files} <= set(client.get("/v1/info").json()["forecasters"])
    told = {}
    for name, path in files.items():
        job = caller.as_job(f"job-{name}")
        assert job.register(forecaster=name, context=5).status_code == 201
        job.fill(10, 20, 30, 40, 50)
        _, told[name] = read_forecasts(job.nowcast(50, (1, 40), context=[10, 20, 30, 40, 50]).content)
        states = torch.stack([job.values(step) for step in (10, 20, 30, 40, 50)])
        alone = load_forecaster("wnn" if name == "plain" else "nino", checkpoint=path)
        assert torch.equal(told[name], alone.forecast(job.wiring, states, horizons=(1, 40)))
    assert not torch.equal(told["vision"], told["text"])
    assert 'nowcast_forecasts_total{forecaster="vision",outcome="made"} 1.0' in client.get("/metrics").text
    until(lambda: service.forecasts.used_bytes == weights_bytes)  # the map of training may still embed the last context
    refused(caller.as_job("lost").register(forecaster="visoin"), 422, "unknown_forecaster", "forecaster")


def test_a_job_that_its_checkpoint_cannot_serve_is_refused(make: Make, start: Start) -> None:
    """It would train to its first nowcast, and be refused that and every other."""
    caller = start(wiring=KERNEL, checkpoints=[make("single", slots=1)], device="cpu")
    told = refused(caller.register(forecaster="nino", context=5), 422, "bad_request", "wiring")
    assert "up to 9 weights; nino takes 1" in told["detail"]
    told = refused(caller.register(forecaster="nino", context=3), 422, "bad_request", "context")
    assert "nino forecasts from 5 snapshots, not 3" in told["detail"]
    assert caller.register(forecaster="wnn", context=5).status_code == 201
