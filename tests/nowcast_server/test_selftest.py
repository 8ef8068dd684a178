"""`nowcast-server selftest`: it says ok where all is well, and what failed where it is not."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from nowcast_server.cli import app
from nowcast_server.forecasters.registry import SHIPPED
from nowcast_server.nino.checkpoint import load_checkpoint
from nowcast_server.nino.engine import DEVICE_SIZES, StreamingEngine
from nowcast_server.selftest import checks
from nowcast_server.selftest.checks import CHECKS, CPU, Failed, Setup
from nowcast_server.selftest.cli import outcomes

RUNNER = CliRunner()


def _run(device: str, tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "selftest.json"
    done = RUNNER.invoke(app, ["selftest", "--device", device, "--json", str(path)])
    assert done.exit_code == 0, done.output
    assert done.output.count("\nok ") + done.output.startswith("ok ") == len(CHECKS)
    return dict(json.loads(path.read_text()))


@pytest.mark.slow
def test_all_is_well_here(tmp_path: Path) -> None:
    """Whoever has a new machine would be told that something is wrong where nothing is, or learn no figures."""
    report = _run("cpu", tmp_path)
    assert report["ok"]
    figures = {check["name"]: check["figures"] for check in report["checks"]}
    assert figures["rolling_context"]["uploads"] == [5, 1, 1, 1]
    assert figures["throughput"]["14k"]["edges_per_s"] > 0
    assert figures.keys() == CHECKS.keys()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_all_is_well_on_a_device(tmp_path: Path) -> None:
    """The CUDA path would be wrong, or hold more memory than it says."""
    assert _run("cuda", tmp_path)["ok"]


def test_a_wrong_engine_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that multiplies wrongly would pass."""
    right = StreamingEngine.forecast

    def wrong(self: StreamingEngine, *args: Any, **kwargs: Any) -> torch.Tensor:
        return right(self, *args, **kwargs) * (1.001 if self.sizes is DEVICE_SIZES else 1)

    monkeypatch.setattr(StreamingEngine, "forecast", wrong)
    with pytest.raises(Failed, match="off by"):
        checks.parity(Setup(CPU, load_checkpoint(SHIPPED / "nino-base.safetensors")))


def test_a_check_that_breaks_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first error of a device would keep the other checks from running."""

    def breaks(_: Setup) -> dict[str, Any]:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(checks, "CHECKS", {"one": breaks, "other": lambda _: {"figure": 1}})
    first, second = outcomes(Setup(CPU, load_checkpoint(SHIPPED / "nino-base.safetensors")))
    assert (first.ok, first.detail) == (False, "RuntimeError: no kernel image is available")
    assert (second.ok, second.figures) == (True, {"figure": 1})


def test_a_device_there_is_not_is_said(tmp_path: Path) -> None:
    """A user without a GPU would see a traceback."""
    if torch.cuda.is_available():
        pytest.skip("there is one")
    done = RUNNER.invoke(app, ["selftest", "--device", "cuda"])
    assert done.exit_code == 2
    assert "--device cuda" in done.output
