"""A forecaster of one's own: by `register` in this process, and from an installed package, embedded and on a server."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx2
import pytest
from small_runs import STEPS, learner, make, train
from torch import Tensor, nn

from nowcast_server.forecasters import FORECASTERS, Forecaster, register
from trainer_worker.training.own_server import own_server

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "own_forecaster"


class Still(Forecaster):
    """Counts its calls."""

    name = "still"
    calls = 0

    def predict(self, wiring: object, states: Sequence[Tensor], *, horizons: tuple[int, ...]) -> Tensor:
        Still.calls += 1
        return states[-1].float().repeat(len(horizons), 1)


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    before = dict(FORECASTERS)
    yield
    FORECASTERS.clear()
    FORECASTERS.update(before)


def test_registered_in_this_process() -> None:
    """A research idea would need a fork of the server to be tried in a training loop."""
    register("still", Still)
    register("still", Still)  # as a notebook cell does that is run again
    model, optimizer = learner()
    with make(model, optimizer, "embedded", forecaster="still") as nowcast:
        train(model, optimizer, range(STEPS))
    assert Still.calls > 0
    assert nowcast.summary()["forecaster"] == "still"


def test_what_cannot_be_one_is_refused() -> None:
    """A mistake would come up hours later, as a run without nowcasts."""

    class Unfinished(Forecaster):
        name = "unfinished"

    class Wanting(Still):
        def __init__(self, size: int) -> None:
            self.size = size

    with pytest.raises(TypeError, match="lacks predict"):
        register("unfinished", Unfinished)
    with pytest.raises(TypeError, match="size"):
        register("wanting", Wanting)
    with pytest.raises(TypeError, match="not a subclass"):
        register("linear2", nn.Linear)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Linear already"):
        register("linear", Still)
    with pytest.raises(ValueError, match="cannot name"):
        register("a/b", Still)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example package, installed by pip into a folder of its own."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for file in EXAMPLE.iterdir():
        if file.is_file():
            (source / file.name).write_bytes(file.read_bytes())
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", str(target)]
    subprocess.run([*pip, str(source)], check=True, capture_output=True)
    return target


FORECAST = """
import torch
from nowcast_server.forecasters import load_forecaster
from trainer_worker.wiring import wire
wiring = wire(torch.nn.Linear(2, 1, bias=False))
print(load_forecaster("newest").forecast(wiring, torch.tensor([[0., 0.], [1., 2.], [2., 5.]]), (1, 4)).tolist())
"""


@pytest.mark.slow
def test_a_server_offers_it(installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forecaster that works at a desk would not be there on a shared server."""
    monkeypatch.setenv("PYTHONPATH", str(installed))
    with own_server(log=tmp_path / "server.log") as url:
        assert "newest" in httpx2.get(f"{url}/v1/info", trust_env=False).json()["forecasters"]


def test_an_installed_package_is_found_and_a_broken_one_does_not_stop_it(installed: Path, tmp_path: Path) -> None:
    """Every process would have to import a plugin by hand; one that cannot be imported would take every server down with it."""
    broken = tmp_path / "broken-1.dist-info"
    broken.mkdir()
    (broken / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1\n")
    (broken / "entry_points.txt").write_text("[nowcast.forecasters]\nbroken = no_such_module:Class\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{installed}"}
    done = subprocess.run([sys.executable, "-c", FORECAST], capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert done.stdout.strip() == "[[3.0, 8.0], [6.0, 17.0]]", done.stderr
    assert "forecaster 'broken' of broken cannot be used: ModuleNotFoundError" in done.stderr
