"""The examples run as they stand, on real data."""

import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer_worker.metatrain.datasets import DIAMONDS, KING_JAMES
from trainer_worker.tasks.data import FASHION_MNIST, DataMissing, Dataset, read
from trainer_worker.training.own_server import own_server

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run an example in this process, as starting another takes seconds; what it prints."""

    def run(name: str, *arguments: str) -> str:
        # tests/trainer_worker/datasets may look like Hugging Face's package of that name
        monkeypatch.setattr("transformers.trainer.is_datasets_available", lambda: False)
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def needs(data: Dataset) -> None:
    try:
        read(data)
    except DataMissing as missing:
        pytest.skip(str(missing))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("convnet.py", FASHION_MNIST),
        ("gpt_huggingface.py", KING_JAMES),
        ("lora_peft.py", KING_JAMES),
        ("lightning_tables.py", DIAMONDS),
    ],
)
def test_an_example_uses_forecasts(run: Callable[..., str], name: str, data: Dataset) -> None:
    """A user who copies the example would get an error, or a run without nowcasts."""
    needs(data)
    text = run(name, "150")
    found = re.search(r"'nowcasts': \{'used': (\d+), 'skipped': (\d+)\}", text)
    assert found
    assert int(found[1]) > 10
    assert int(found[2]) == 0
    assert name != "lora_peft.py" or "4,608 of 116,992 weights are trained, sent and forecast" in text


@pytest.mark.slow
@pytest.mark.ray
def test_ray_train(ray_cluster: None, run: Callable[..., str]) -> None:
    """A loop of one's own on Ray Train would get no nowcasts, or ranks that differ."""
    needs(DIAMONDS)
    found = re.search(r"'used': (\d+)", run("ray_train.py", "150"))
    assert found
    assert int(found[1]) > 10


@pytest.mark.slow
def test_a_client_of_the_wire_protocol(run: Callable[..., str], tmp_path: Path) -> None:
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
