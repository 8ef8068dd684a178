"""Fitting: it learns, it resumes, it does not swallow NaN."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from interrupts import interrupted
from pydantic import ValidationError
from typer.testing import CliRunner

from nowcast_server.forecasters import load_forecaster
from nowcast_server.forecasters.registry import SHIPPED
from nowcast_server.nino.checkpoint import load_checkpoint
from nowcast_server.trajectories.store import Trajectory, TrajectoryWriter
from trainer_worker.metatrain import fit as fitting
from trainer_worker.metatrain.cli import app
from trainer_worker.metatrain.fit import FitConfig, fit
from trainer_worker.metatrain.library import Library
from trainer_worker.metatrain.skill import RIVALS, linear, load_predictor, skill
from trainer_worker.metatrain.windows import Cut, read_windows


def config(runs: Path, out: Path, **changes: object) -> FitConfig:
    small = {"hidden": 8, "steps": 12, "groups": 2, "windows": 2, "save_every": 5, "validate_every": 6}
    return FitConfig(trajectories=runs, out=out, name="small", **{**small, **changes})  # type: ignore[arg-type]


def test_a_resumed_fit_draws_from_what_it_began_with(runs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A collection or a server that goes on beside a fit would change the weights that come out of it if it is interrupted; or
    nobody could see whether a fit of hours is worth going on.
    """
    straight = fit(config(runs, tmp_path / "a"))
    lines = [json.loads(line) for line in (tmp_path / "a" / "progress.jsonl").read_text().splitlines()]
    assert lines[0]["config"]["name"] == "small"
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 13))
    assert set(lines[-1]["skill"]) == {"average", "linear", "model"}
    store = tmp_path / "store"
    shutil.copytree(runs, store)
    settings = config(store, tmp_path / "b")
    with interrupted(fitting, "_advance", at=9):
        fit(settings)
    gone = store / "1" / "01.trajectory"
    gone.write_bytes(b"")
    with pytest.raises(ValueError, match=r"1/01.trajectory, which is missing or damaged"):  # it would go on with other draws
        fit(settings)
    shutil.copy(runs / "1" / "01.trajectory", gone)
    shutil.copytree(runs / "0", store / "9")
    old = Trajectory.open(store / "0" / "00.trajectory")
    with TrajectoryWriter(old.path, old.base, header={}) as writer:
        for step in range(310, 500, 10):
            writer.append(step, old.base)
    with caplog.at_level(logging.INFO):
        resumed = fit(settings)
    ours, theirs = load_checkpoint(straight), load_checkpoint(resumed)
    assert all(torch.equal(ours.tensors[name], theirs.tensors[name]) for name in ours.tensors)
    assert "2 trajectories were added since the fit began, and are ignored until the next one: 9/00.traj" in caplog.text


def test_a_fit_goes_on_with_the_settings_it_began_with(runs: Path, tmp_path: Path) -> None:
    """Changed settings would give the finished fit's weights again, with a note that tells the new ones."""
    settings = config(runs, tmp_path, steps=1)
    fit(settings)
    with pytest.raises(ValueError, match=r"started with seed = 0, not 9: .* another folder"):
        fit(settings.model_copy(update={"seed": 9}))
    with pytest.raises(ValueError, match="hidden = 8, not 16"):  # not what torch says of the shapes of tensors
        fit(settings.model_copy(update={"hidden": 16}))
    fit(settings.model_copy(update={"save_every": 1, "name": "other"}))


def test_learns_to_beat_last_on_runs_it_was_not_fitted_to(runs: Path, tmp_path: Path) -> None:
    """A fit that lowers its loss without learning anything that carries over would go unnoticed."""
    path = fit(config(runs, tmp_path, hidden=16, steps=150, groups=2, windows=4, ema=0.9, validate_every=1000))
    found = skill(Library.open(runs).validation, {"fitted": load_predictor(path)})
    assert found["fitted"]["all"]["5"] > 0.05, found


def test_a_fit_can_begin_with_another_ones_weights(runs: Path, tmp_path: Path) -> None:
    """A team that fits the shipped forecaster to its own recordings would begin from nothing, or with a model of another shape."""
    first = fit(config(runs, tmp_path / "first", steps=100))
    scored = skill(Library.open(runs).validation, {"first": load_predictor(first)})["first"]["all"]["5"]
    on = fit(config(runs, tmp_path / "on", start=first, steps=1, lr=1e-9))
    assert skill(Library.open(runs).validation, {"on": load_predictor(on)})["on"]["all"]["5"] == pytest.approx(scored, abs=1e-3)
    note = load_checkpoint(on).note
    assert "networks, 1 steps" in note
    assert "networks, 100 steps" in note
    with pytest.raises(ValueError, match="hidden = 8, this fit 16"):
        fit(config(runs, tmp_path / "wider", start=first, hidden=16))


def test_a_share_of_the_start_is_kept(runs: Path, tmp_path: Path) -> None:
    """The shipped weights, half of them those before the last fit, could not be made again."""
    first = fit(config(runs, tmp_path / "first"))
    fitted, half, all_of_it = (
        load_checkpoint(fit(config(runs, tmp_path / f"{keep}", start=first, keep=keep))).tensors for keep in (0.0, 0.5, 1.0)
    )
    start = load_checkpoint(first).tensors
    for name, tensor in start.items():
        torch.testing.assert_close(half[name], (fitted[name] + tensor) / 2)
        assert torch.equal(all_of_it[name], tensor)
    assert not all(torch.equal(fitted[name], tensor) for name, tensor in start.items())
    with pytest.raises(ValidationError, match="keep needs start"):
        config(runs, tmp_path, keep=0.5)


def test_tasks_that_are_held_judge_and_teach_nothing(runs: Path) -> None:
    """A team could not tell whether the forecaster fitted to its recordings is better on runs it has not seen."""
    usual, held = Library.open(runs), Library.open(runs, held=("mlp/friedman-2",))
    assert {group.task for group in held.training} == {"mlp/friedman-1"} < {group.task for group in usual.training}
    assert {group.task for group in held.validation} == {"mlp/friedman-2", "mlp/friedman-3"}


def test_a_step_without_finite_gradient_is_left_out(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One bad window would turn every weight of the forecaster into NaN."""
    predict = fitting.predict
    calls = iter(range(10**6))

    def spoiled(*arguments: object, **options: object) -> torch.Tensor:
        found = predict(*arguments, **options)  # type: ignore[arg-type]
        return found * float("nan") if next(calls) % 5 == 0 else found

    monkeypatch.setattr(fitting, "predict", spoiled)
    tensors = load_checkpoint(fit(config(runs, tmp_path))).tensors
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    monkeypatch.setattr(fitting, "predict", lambda *a, **o: predict(*a, **o) * float("nan"))
    monkeypatch.setattr(fitting, "MOST_SKIPPED", 3)
    with pytest.raises(FloatingPointError, match="no finite gradient"):
        fit(config(runs, tmp_path / "worse"))


def record(path: Path, *, blocks: list[list[int]], **header: object) -> None:
    """A run of two weights, as a server keeps it."""
    wiring = {"parameters": [["weight", [2]]], "neurons": 3, "blocks": blocks}
    with TrajectoryWriter(path, np.zeros(2, np.float32), header={"wiring": wiring, **header}) as writer:
        for step in range(25):
            writer.append(step, np.full(2, step, np.float32), loss=1.0, segment=0)


def test_recordings_without_a_graph_are_left_out(runs: Path, tmp_path: Path) -> None:
    """A client of one's own may send none for `linear`: a fit to all recordings would end with an error of torch's, or learn from
    every second step only.
    """
    shutil.copytree(runs, tmp_path / "runs")
    record(tmp_path / "runs" / "run.trajectory", blocks=[], task="recorded/a/b")
    assert {group.kind for group in Library.open(tmp_path / "runs").training} == {"mlp"}


def refused(*arguments: object) -> str:
    """What a command says that ends before it has done anything."""
    said = CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "400"})
    assert said.exit_code == 2, said.output
    return said.output


def test_commands_say_what_they_cannot_do(runs: Path, tmp_path: Path) -> None:
    """The user would read a traceback and not which file is no checkpoint, or see an empty table, as if all had gone well."""
    missing, teaching, recorded = tmp_path / "missing.safetensors", tmp_path / "teaching", tmp_path / "recorded"
    (tmp_path / "fit.toml").write_text(f'trajectories = "{runs}"\nout = "{tmp_path}/out"\nname = "x"\nstart = "{missing}"\n')
    assert "missing.safetensors" in refused("judge", runs, missing)
    assert "missing.safetensors" in refused("fit", tmp_path / "fit.toml")
    collection = f'folder = "{tmp_path}/new"\nseed = 1\nstudies = 1\nleaping = 1.0\nforecaster = "{missing}"\n'
    (tmp_path / "collect.toml").write_text(collection, encoding="utf-8-sig")
    assert "missing.safetensors" in refused("collect", tmp_path / "collect.toml")
    (tmp_path / "latin.toml").write_bytes(b'folder = "\xe9"')
    assert "latin.toml: 'utf-8' codec" in refused("collect", tmp_path / "latin.toml")
    teaching.mkdir()
    (path, *_) = (run.path for group in Library.open(runs).training for run in group.runs)
    shutil.copy(path, teaching)
    weights = SHIPPED / "nino-base.safetensors"
    assert Library.open(teaching).training[0].task in refused("judge", teaching, weights, "--held", "nonsense")
    refused("show", tmp_path / "nothing")
    record(recorded / "run.trajectory", blocks=[[2, 2, 1, 0, 2, 0, 0, 0, 0, 1, 1, 0]], validation=True)
    assert "--by-loss needs" in refused("judge", recorded, weights, "--by-loss")  # their task is not known
    with pytest.raises(ValueError, match="metatrain collect"):
        fit(config(tmp_path / "nothing", tmp_path / "out"))


def test_windows_are_the_runs(runs: Path) -> None:
    """Contexts and targets would lie at other steps than the horizons say."""
    group = Library.open(runs).training[0]
    run = group.runs[0]
    windows = read_windows(group, [Cut(run, 3, 2)], (1, 5, 40))
    assert windows.known.tolist() == [[True, True, False]]
    states = run.states(slice(None))
    scale = (states[5, 0] - states[3, 0]) / (windows.z[0, 1, 0] - windows.z[0, 0, 0])
    where = int(torch.nonzero(windows.plan.weights == 0)[0, 0])
    for index, horizon in enumerate((1, 5)):
        moved = states[11 + 2 * horizon, 0] - states[11, 0]
        assert np.isclose(float(windows.change[0, where, index] * scale), moved, rtol=1e-3)
    assert float(windows.change[0, :, 2].abs().max()) == 0.0


def test_averaged_contexts_end_where_raw_ones_do(runs: Path) -> None:
    """Averages over the interval to come would let the forecaster see the future."""
    group = Library.open(runs).training[0]
    run = group.runs[0]
    averaged = read_windows(group, [Cut(run, 4, 3, averaged=True)], (1,)).z[0]
    expected = torch.from_numpy(np.stack([run.states(slice(end - 2, end + 1)).mean(0) for end in range(4, 17, 3)]))
    first = slice(0, 10)
    assert torch.allclose(
        (averaged[1] - averaged[0])[first] / (averaged[4] - averaged[0])[first],
        (expected[1] - expected[0])[first] / (expected[4] - expected[0])[first],
        rtol=1e-2,
    )


def test_rivals_are_the_forecasters_of_their_names(runs: Path) -> None:
    """Skill would be measured against something else than what the server offers."""
    group = Library.open(runs).validation[0]
    run = group.runs[0]
    windows = read_windows(group, [Cut(run, 2, 2)], (5, 10))
    states = torch.from_numpy(run.states(2 + 2 * np.arange(5)))
    z = windows.z[0]
    for name, rival in RIVALS.items():
        raw = load_forecaster(name).forecast(group.wiring, states, horizons=(5, 10))
        scale = (states[-1] - states[0]) / (z[-1] - z[0])
        moved = ((raw - states[-1]) / scale)[:, windows.plan.weights].T
        assert torch.allclose(rival(windows)[0], moved, rtol=2e-2, atol=1e-3), name
    assert linear(windows).abs().sum() > 0


@pytest.mark.parametrize("name", ["nino", "wnn"])
def test_shipped_weights_beat_their_rivals(runs: Path, name: str) -> None:
    """A server without a checkpoint would forecast worse than the claim that nothing changes."""
    path = SHIPPED / f"{name}-base.safetensors"
    assert path.stat().st_size <= 3_000_000
    assert load_forecaster(name).max_horizon == 40
    library = Library.open(runs)
    found = skill((*library.validation, *library.training), {**RIVALS, name: load_predictor(path)})
    for horizon in ("5", "10"):
        assert found[name]["all"][horizon] > max(0.0, *(found[rival]["all"][horizon] for rival in RIVALS)), found
