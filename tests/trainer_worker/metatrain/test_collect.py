"""Collecting: what is drawn, and what is left when it is interrupted."""

import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interrupts import interrupted

from nowcast_server.trajectories.store import TrajectoryWriter, trajectories
from trainer_worker.metatrain import collect, corpus, workers
from trainer_worker.metatrain.collect import CollectConfig, collect_study
from trainer_worker.metatrain.datasets import factbook, mnist_5k, tables
from trainer_worker.metatrain.draw import Study, draw
from trainer_worker.metatrain.fit import FitConfig
from trainer_worker.tasks.data import DataMissing


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Studies on synthetic tables, 40 steps long."""
    monkeypatch.setattr(corpus, "TRAINING", {kind: {"friedman-1": 1.0} for kind in ("convnet", "mlp", "gpt")})
    monkeypatch.setattr(corpus, "VALIDATION", corpus.TRAINING)

    def drawn(seed: int, number: int, **options: float) -> object:
        mlps = (
            study for other in range(100) if (study := draw(seed + number, other, lanes=1, validation_share=0)).design.kind == "mlp"
        )
        return replace(next(mlps), number=number, steps=40, every=25)

    monkeypatch.setattr(collect, "draw", drawn)
    monkeypatch.setattr(corpus, "text", lambda name: (torch.zeros(500, dtype=torch.int64), 20))


def test_held_out_data_is_never_trained_on() -> None:
    """The benchmark's claim is about data that no forecaster of ours has seen."""
    assert corpus.FASHION_EXAMPLES == 55_000  # the rest is the validation part of FM-16 and FM-32
    seen = {name for among in (*corpus.TRAINING.values(), *corpus.VALIDATION.values()) for name in among}
    assert not seen & {"animals", "king-james", "wikipedia", "diamonds"}
    for kind, among in corpus.VALIDATION.items():
        assert not set(among) & set(corpus.TRAINING[kind])


def test_an_interrupted_study_leaves_nothing_half(small: None, tmp_path: Path) -> None:
    """A run that stopped early would pass for one that is complete."""
    config = CollectConfig(folder=tmp_path, studies=2, lanes=1)
    with interrupted(TrajectoryWriter, "append", at=2):
        collect_study(config, 0)
    assert list(workers.missing(config)) == [0, 1]
    collect_study(config, 0)
    assert list(workers.missing(config)) == [1]
    found = list(trajectories(config.home(0)))
    assert found
    assert all(run.steps.tolist() == [0, 25] for run in found)


@pytest.mark.parametrize("how", ["slower", "swept"])
def test_two_collectors_of_one_folder_do_not_mix(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """A study would hold runs that one process had written in part when the other was done, or the slower one would end."""
    config = CollectConfig(folder=tmp_path, studies=1, lanes=1)
    store = collect._store

    def overtaken(study: Study, lane: int, *rest: Any) -> None:
        if lane == 1:
            monkeypatch.setattr(collect, "_store", store)
            collect_study(config, 0)  # by another process
            if how == "swept":
                raise FileNotFoundError(*rest)
        store(study, lane, *rest)

    (tmp_path / f".{config.home(0).name}.killed").mkdir()
    monkeypatch.setattr(collect, "_store", overtaken)
    assert "2 runs" in collect_study(config, 0)
    assert [run.path.parent for run in trajectories(tmp_path)] == 2 * [config.home(0)]
    assert all(run.steps.tolist() == [0, 25] for run in trajectories(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [config.home(0).name]


def test_collecting_again_gives_the_same_weights(small: None, tmp_path: Path) -> None:
    """What is shipped could not be reproduced."""
    states = []
    for name in ("a", "b"):
        config = CollectConfig(folder=tmp_path / name, studies=1, lanes=1)
        collect_study(config, 0)
        states.append([run.states(slice(None)) for run in trajectories(config.folder)])
    assert all(np.array_equal(a, b) for a, b in zip(*states, strict=True))


def test_shipped_configurations_are_valid() -> None:
    """`make metatrain` would stop at one of its lines, or begin where no earlier one has ended."""
    root = Path(__file__).parents[3]
    stores, made = set(), set()
    commands = re.findall(r"metatrain (collect|fit) (\S+)", (root / "Makefile").read_text())
    for command, path in commands:
        table = tomllib.loads((root / path).read_text())
        if command == "collect":
            stores.add(CollectConfig(**table).folder)
        else:
            config = FitConfig(**table)
            assert config.trajectories in stores, path
            assert config.start is None or config.start in made, path
            made.add(config.out / f"{config.name}.safetensors")
    assert {root / path for _, path in commands} == set((root / "deploy" / "metatrain").glob("*.toml"))


def test_what_meta_training_reads() -> None:
    """Pictures and labels torn apart, markup instead of prose, or columns of the wrong scale would be fitted to."""
    try:
        (images, labels), text, numbers = mnist_5k(), factbook(), tables()
    except DataMissing as missing:
        pytest.skip(str(missing).splitlines()[0])
    assert images.shape == (5000, 28, 28)
    assert np.bincount(labels).tolist() == [500] * 10
    assert len(text) > 4_000_000
    for features, targets in numbers.values():
        assert np.isfinite(features).all()
        assert np.allclose(features.mean(0), 0.0, atol=1e-4)
        assert len(features) == len(targets)
