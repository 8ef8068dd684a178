"""`nowcast-server selftest`: it says ok where all is well, and what failed where it is not."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from nowcast_server.cli import app
from nowcast_server.forecasters import load_forecaster
from nowcast_server.nino.engine import CPU_SIZES, DEVICE_SIZES, Sizes, StreamingEngine
from nowcast_server.selftest import checks
from nowcast_server.selftest.checks import CHECKS, CPU, Failed, Setup
from nowcast_server.selftest.cli import outcomes, plain_model

RUNNER = CliRunner()
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture
def setup() -> Setup:
    return Setup(CPU, load_forecaster("nino").checkpoint, plain_model())


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NEEDS_CUDA])])
def test_all_is_well_here(device: str, tmp_path: Path) -> None:
    """Whoever has a new machine would be told that something is wrong where nothing is, or learn no figures."""
    path = tmp_path / "selftest.json"
    done = RUNNER.invoke(app, ["selftest", "--device", device, "--json", str(path)])
    assert done.exit_code == 0, done.output
    assert done.output.count("\nok ") + done.output.startswith("ok ") == len(CHECKS)
    report = json.loads(path.read_text())
    assert report["ok"]
    figures = {check["name"]: check["figures"] for check in report["checks"]}
    assert figures["rolling_context"]["uploads"] == [5, 1, 1, 1]
    assert figures["throughput"]["14k"]["edges_per_s"] > 0
    assert figures["reference"]["14k"]["times"] > 0
    assert figures.keys() == CHECKS.keys()
    assert len(CHECKS) == 10
    assert report["seconds"] < 120


@pytest.mark.parametrize(("check", "sizes"), [(checks.parity, DEVICE_SIZES), (checks.reference, CPU_SIZES)])
def test_a_wrong_engine_is_found(
    monkeypatch: pytest.MonkeyPatch, check: Callable[[Setup], dict[str, Any]], sizes: Sizes, setup: Setup
) -> None:
    """A device that multiplies wrongly would pass."""
    right = StreamingEngine.forecast

    def wrong(self: StreamingEngine, *args: Any, **kwargs: Any) -> torch.Tensor:
        return right(self, *args, **kwargs) * (1.001 if self.sizes is sizes else 1)

    monkeypatch.setattr(StreamingEngine, "forecast", wrong)
    with pytest.raises(Failed, match="off by"):
        check(setup)


def test_a_check_without_its_library_says_so(monkeypatch: pytest.MonkeyPatch, setup: Setup) -> None:
    """A server's image, which has no torch-geometric, would be told that its device is broken."""
    monkeypatch.setitem(sys.modules, "torch_geometric.data", None)
    monkeypatch.delitem(sys.modules, "trainer_worker.metatrain.reference")
    assert plain_model() is None
    assert "not installed" in checks.reference(replace(setup, plain=None))["left_out"]


def test_a_check_that_breaks_is_one_line(monkeypatch: pytest.MonkeyPatch, setup: Setup) -> None:
    """The first error of a device would keep the other checks from running."""

    def breaks(_: Setup) -> dict[str, Any]:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(checks, "CHECKS", {"one": breaks, "other": lambda _: {"figure": 1}})
    first, second = outcomes(setup)
    assert (first.ok, first.detail) == (False, "RuntimeError: no kernel image is available")
    assert (second.ok, second.figures) == (True, {"figure": 1})


def test_a_device_there_is_not_is_said(tmp_path: Path) -> None:
    """A user without a GPU would see a traceback."""
    if torch.cuda.is_available():
        pytest.skip("there is one")
    done = RUNNER.invoke(app, ["selftest", "--device", "cuda"])
    assert done.exit_code == 2
    assert "--device cuda" in done.output
