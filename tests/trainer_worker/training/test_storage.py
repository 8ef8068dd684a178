"""Checkpoints may go anywhere that pyarrow or fsspec writes to."""

import uuid
from pathlib import Path

import pytest

from trainer_worker.training.storage import folders, forget, put, resolve


@pytest.mark.parametrize("kind", ["", "file://", "local://", "memory://"], ids=lambda kind: kind or "path")
def test_runs_are_found_and_forgotten(tmp_path: Path, kind: str) -> None:
    """A fresh start would go on from a forgotten run's checkpoints; or the command would not see that there are some."""
    place = f"{kind}{tmp_path}/{uuid.uuid4().hex}"
    assert folders(place) == []
    forget(place, "mine")
    filesystem, path = resolve(place)
    for name in ("mine", "yours"):
        filesystem.create_dir(f"{path}/{name}/checkpoint_1")
        with filesystem.open_output_stream(f"{path}/{name}/checkpoint_1/shared.pt") as file:
            file.write(b"x")
    assert folders(place) == ["mine", "yours"]
    forget(place, "mine")
    assert folders(place) == ["yours"]
    if kind != "memory://":
        assert [each.name for each in Path(path).iterdir()] == ["yours"]


@pytest.mark.parametrize("kind", ["", "file://", "memory://"], ids=lambda kind: kind or "path")
def test_results_arrive(tmp_path: Path, kind: str) -> None:
    """Results of a run on the cluster would go with the node they were made on; or those of an earlier run would stay."""
    place = f"{kind}{tmp_path}/{uuid.uuid4().hex}/run"
    files = [tmp_path / "summary.json", tmp_path / "report.png"]
    for content in (b"first", b"second"):
        for file in files:
            file.write_bytes(content + file.name.encode())
        put(place, files)
        filesystem, path = resolve(place)
        for file in files:
            with filesystem.open_input_stream(f"{path}/{file.name}") as stream:
                assert stream.read() == content + file.name.encode()


def test_a_home_directory_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints and copies would go to a folder named ~."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    put("~/copies", [Path(__file__)])
    assert (tmp_path / "home" / "copies" / Path(__file__).name).is_file()
