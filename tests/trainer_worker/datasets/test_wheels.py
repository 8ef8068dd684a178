"""Data that lies in wheels."""

import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainer_worker.datasets import DATASETS, wheel
from trainer_worker.datasets.animals import animals
from trainer_worker.datasets.dataset import DataFile, DataMissing, SourceFailed
from trainer_worker.datasets.diamonds import diamonds
from trainer_worker.datasets.factbook import factbook
from trainer_worker.datasets.king_james import king_james
from trainer_worker.datasets.mnist_5k import mnist_5k
from trainer_worker.datasets.tables import tables
from trainer_worker.datasets.wheel import PythonWheel
from trainer_worker.datasets.wikipedia import wikipedia


@pytest.fixture
def fake_pip(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Downloads a wheel that holds one table."""
    calls: list[tuple[str, ...]] = []

    def download(*command: str, folder: Path, label: str) -> None:
        calls.append(command)
        with zipfile.ZipFile(folder / "thing-1.0-py3-none-any.whl", "w") as archive:
            archive.writestr("thing/data.csv", "1,2")

    monkeypatch.setattr(wheel, "run_program", download)
    return calls


def test_takes_the_named_files_and_runs_nothing(fake_pip: list[tuple[str, ...]], tmp_path: Path) -> None:
    """Code from the index would be installed or run, or the wrong file taken."""
    source = PythonWheel("thing==1.0", {"data.csv": "thing/data.csv", "thing.whl": ""})
    source.fetch((DataFile("data.csv", ""), DataFile("thing.whl", "")), tmp_path)
    assert (tmp_path / "data.csv").read_text() == "1,2"
    assert zipfile.is_zipfile(tmp_path / "thing.whl")
    ((program, *arguments),) = fake_pip
    assert program == sys.executable
    assert {"download", "--no-deps", "--only-binary=:all:"} <= set(arguments)


def test_a_wheel_without_the_file_is_a_failed_source(fake_pip: list[tuple[str, ...]], tmp_path: Path) -> None:
    """A KeyError would stop the search although another source may have the data."""
    with pytest.raises(SourceFailed, match="other"):
        PythonWheel("thing==1.0", {"data.csv": "thing/other.csv"}).fetch((DataFile("data.csv", ""),), tmp_path)


@pytest.mark.parametrize("wheels", [0, 2])
def test_another_number_of_wheels_is_a_failed_source(wheels: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A ValueError would stop the search although another source may have the data."""
    for number in range(wheels):
        (tmp_path / f"thing-{number}.whl").write_bytes(b"")
    monkeypatch.setattr(wheel, "run_program", lambda *_, **__: None)
    with pytest.raises(SourceFailed, match=rf"{wheels} files \*.whl came, not one"):
        PythonWheel("thing==1.0", {"data.csv": "data.csv"}).fetch((DataFile("data.csv", ""),), tmp_path)


def _or_skip(load: Callable[[], Any]) -> Any:
    try:
        return load()
    except DataMissing as missing:
        pytest.skip(str(missing).splitlines()[0])


def test_every_set_is_listed() -> None:
    """`DATASETS` is what fetches data ahead of a run without network."""
    assert set(DATASETS) == {
        "fashion-mnist", "mnist-5k", "animals", "king-james", "factbook", "wikipedia", "tables", "diamonds",
    }  # fmt: skip


def test_pictures() -> None:
    """Pictures and labels would be torn apart, or duplicates straddle the splits."""
    digits = _or_skip(mnist_5k)
    assert digits.images.shape == (5000, 28, 28)
    assert np.bincount(digits.labels).tolist() == [500] * 10
    shapes = _or_skip(animals)
    assert shapes.images.shape == (9716, 28, 28)
    assert len(np.unique(shapes.images, axis=0)) == 9716
    assert np.bincount(shapes.labels).min() > 800


def test_texts() -> None:
    """Markup instead of prose would be modelled."""
    bible = _or_skip(king_james)
    assert bible.startswith("In the beginning God created")
    assert bible.endswith("Amen.\n")
    assert len(_or_skip(factbook)) > 4_000_000
    articles = _or_skip(wikipedia)
    assert 2_500_000 < len(articles) < 3_500_000
    assert articles.count("[[") < 100


def test_numbers() -> None:
    """Columns of the wrong scale, or rows sorted by the target, would make another task."""
    for table in (*_or_skip(tables).values(), _or_skip(diamonds)):
        assert np.isfinite(table.features).all()
        assert np.allclose(table.features.mean(0), 0.0, atol=1e-4)
        assert len(table.features) == len(table.targets)
    stones = diamonds()
    assert abs(stones.targets[:1000].mean()) < 0.2
    assert np.corrcoef(stones.features[:, 0], stones.targets)[0, 1] > 0.9
