"""Fixtures every test may use: the shared material beside the project, and one local Ray cluster a session."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads of small networks wait for each other on a busy machine
hypothesis.settings.register_profile("any-machine", deadline=None)  # nothing is wrong with an example that takes long
hypothesis.settings.load_profile("any-machine")
SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what needs Ray, which takes longest: where tests run in two processes, file by file, the other goes on."""
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)


@dataclass(frozen=True)
class ParityFixture:
    """One small network, five snapshots of it, and what the published code predicted (../shared/parity/README.md)."""

    meta: dict[str, Any]
    params: list[tuple[str, tuple[int, ...]]]
    horizons: tuple[int, ...]
    arrays: dict[str, np.ndarray]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder ../shared; tests that need it skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("../shared is not here")
    return SHARED


@pytest.fixture(scope="session")
def parity(shared: Path) -> Callable[[str], ParityFixture]:
    """Loads a parity fixture by name: mlp, conv, conv_bn, gpt2, llama, bert."""

    def load(name: str) -> ParityFixture:
        about = json.loads((shared / "parity" / f"{name}.json").read_text())
        with np.load(shared / "parity" / f"{name}.npz") as data:
            arrays = dict(data)
        params = [(label, tuple(shape)) for label, shape in about["params"]]
        return ParityFixture(about["meta"], params, tuple(about["horizons"]), arrays)

    return load


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local Ray cluster for the whole session: two CPUs, a small object store, silent."""
    import ray

    from trainer_worker.training.ray_train import start_local_cluster

    start_local_cluster(cpus=2)
    yield
    ray.shutdown()
