"""Laplacian features on disk: found again, never half, never in the way."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import mlp_wiring
from torch import Tensor

from nowcast_server.nino import feature_files, laplacian
from nowcast_server.nino.feature_files import kept
from nowcast_server.nino.laplacian import compute_features, laplacian_features


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NOWCAST_FEATURES", str(tmp_path))
    return tmp_path


def counted(features: Tensor) -> tuple[Callable[[], Tensor], list[int]]:
    calls: list[int] = []

    def compute() -> Tensor:
        calls.append(1)
        return features

    return compute, calls


def test_features_are_computed_once() -> None:
    """Every restart of a server would compute the features of every large network again."""
    features = torch.randn(7, 3)
    compute, calls = counted(features)
    assert all(torch.equal(kept("a", (7, 3), compute), features) for _ in range(3))
    assert len(calls) == 1


@pytest.mark.parametrize(
    "content", [b"", b"no array", b"\x93NUMPY\x01\x00", None], ids=["empty", "other", "truncated", "another_shape"]
)
def test_a_broken_file_is_replaced(content: bytes | None, folder: Path) -> None:
    """A full disk or a crash would leave a server with wrong features, or none, for ever."""
    compute, calls = counted(torch.randn(7, 3))
    kept("a", (7, 3), compute)
    (path,) = folder.iterdir()
    if content is None:
        np.save(path, np.zeros((7, 4), dtype=np.float32))
    else:
        path.write_bytes(content)
    assert torch.equal(kept("a", (7, 3), compute), compute())
    before = len(calls)
    kept("a", (7, 3), compute)
    assert len(calls) == before


def test_without_a_folder_they_are_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server with a read-only file system, or told to keep nothing, could not forecast."""
    features = torch.randn(2, 2)
    (tmp_path / "file").touch()
    for chosen in ("", str(tmp_path / "file" / "below"), "/proc/no/such"):
        monkeypatch.setenv("NOWCAST_FEATURES", chosen)
        assert torch.equal(kept("a", (2, 2), lambda: features), features)


def test_a_file_of_another_user_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replicas on a read-only volume of features would compute them all again."""
    compute, calls = counted(torch.randn(7, 3))
    kept("a", (7, 3), compute)

    def refuse(path: Path) -> None:
        raise PermissionError(1, "Operation not permitted", path)

    monkeypatch.setattr(Path, "touch", refuse)
    assert torch.equal(kept("a", (7, 3), compute), compute())
    assert len(calls) == 2


def test_a_user_without_a_home_keeps_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container that runs as a number, without HOME, could not forecast for a large network."""

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("NOWCAST_FEATURES", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    compute, calls = counted(torch.randn(2, 2))
    assert torch.equal(kept("a", (2, 2), compute), kept("a", (2, 2), compute))
    assert len(calls) == 2


def test_old_files_make_room(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder would grow without bound."""
    monkeypatch.setattr(feature_files, "MOST_BYTES", 5000)
    for index in range(10):
        kept(f"wiring{index}", (100, 3), lambda: torch.zeros(100, 3))
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 5000
    assert (folder / f"wiring9-{feature_files.FORMAT}.npy").exists()


def _keep(folder: str, value: float) -> None:
    import os

    os.environ["NOWCAST_FEATURES"] = folder
    for index in range(20):
        features = kept(f"race{index}", (400, 8), lambda: torch.full((400, 8), value))
        assert (features == features[0, 0]).all()


def test_processes_may_write_the_same_file(folder: Path) -> None:
    """Two servers that share a folder would read each other's half-written files."""
    context = multiprocessing.get_context("spawn")
    both = [context.Process(target=_keep, args=(str(folder), value)) for value in (1.0, 2.0)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    assert not list(folder.glob("*.part"))


def test_large_networks_are_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The features of a large network would not reach the disk, or come back different."""
    wiring = mlp_wiring(5, 9, 4)
    monkeypatch.setattr(laplacian, "WORTH_KEEPING", 10)
    first = laplacian_features(wiring)
    assert len(list(folder.iterdir())) == 1
    laplacian._CACHE._values.clear()
    assert torch.equal(laplacian_features(wiring), first)
    assert torch.equal(first, compute_features(wiring, count=8))
