"""The examples run as they stand, on real data."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from trainer_worker.tasks.data import DATASETS, DataMissing, read
from trainer_worker.training.own_server import own_server

ROOT = Path(__file__).resolve().parents[2]


def run(name: str, *arguments: str) -> str:
    """What an example prints."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, ROOT / "examples" / name, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def needs(data: str) -> None:
    try:
        read(DATASETS[data])
    except DataMissing as missing:
        pytest.skip(str(missing))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("convnet.py", "fashion-mnist"),
        ("gpt_huggingface.py", "king-james"),
        ("lora_peft.py", "king-james"),
        ("lightning_tables.py", "diamonds"),
    ],
)
def test_an_example_uses_forecasts(name: str, data: str) -> None:
    """A user who copies the example would get an error, or a run without nowcasts."""
    needs(data)
    text = run(name, "100")
    found = re.search(r"'nowcasts': \{'used': (\d+), 'skipped': (\d+)\}", text)
    assert found
    assert int(found[1]) > 10
    assert int(found[2]) == 0
    assert name != "lora_peft.py" or "4,608 of 116,992 weights are trained, sent and forecast" in text


@pytest.mark.slow
@pytest.mark.ray
def test_ray_train(ray_cluster: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A loop of one's own on Ray Train would get no nowcasts, or ranks that differ."""
    needs("diamonds")
    monkeypatch.setattr(sys, "argv", ["ray_train.py", "100"])
    runpy.run_path(str(ROOT / "examples" / "ray_train.py"), run_name="__main__")
    found = re.search(r"'used': (\d+)", capsys.readouterr().out)
    assert found
    assert int(found[1]) > 10


@pytest.mark.slow
def test_a_client_of_the_wire_protocol(tmp_path: Path) -> None:
    """Whoever writes a client in another language starts from this one: it must agree with the server to the byte."""
    with own_server(log=tmp_path / "server.log") as url:
        text = run("wire_client.py", url)
    assert "in 1 intervals: -60.000 -42.857 -25.714 -8.571 8.571 25.714 42.857 60.000" in text
    assert "in 4 intervals: -90.000" in text


def test_the_client_needs_nothing_else() -> None:
    """With one more import it would be no proof that the protocol is enough."""
    text = (ROOT / "examples" / "wire_client.py").read_text()
    imported = set(re.findall(r"^(?:import|from) (\w+)", text, re.MULTILINE)) - set(sys.stdlib_module_names)
    assert imported == {"msgpack", "numpy"}
