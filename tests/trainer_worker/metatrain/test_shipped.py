"""The weights inside the package."""

from pathlib import Path

import pytest

from nowcast_server.forecasters import load_forecaster
from nowcast_server.forecasters.registry import SHIPPED
from trainer_worker.metatrain.library import Library
from trainer_worker.metatrain.skill import RIVALS, load_predictor, skill


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
