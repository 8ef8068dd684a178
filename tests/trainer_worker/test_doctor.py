"""`nowcast doctor`: what it finds, and what it says to do."""

from pathlib import Path

import pytest
from server_process import ServerProcess
from typer.testing import CliRunner, Result

from trainer_worker.cli import app
from trainer_worker.doctor import Question, examine

MODELS = """
from torch import nn

def build():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))

def tuned():
    model = build()
    model[0].requires_grad_(False)
    return model

class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, a, b):
        return self.layer(a["x"] + b.tokens)
"""


@pytest.fixture(autouse=True)
def _models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "doctored.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["doctor", *arguments])


def test_a_network_that_works() -> None:
    """A user could not know, before hours of training, whether the network is understood and what it costs."""
    done = call("doctored:build", "--max-steps", "2000")
    assert done.exit_code == 0, done.output
    assert "100.0% of 212 weights are wired" in done.stdout
    assert "a snapshot of 848 bytes in float32 is sent every interval" in done.stdout
    assert "intervals of 10 steps" in done.stdout
    assert "spectral (mode glide) takes" in done.stdout


def test_forecasts_in_this_process_may_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """NOWCAST_SERVER=embedded, which a run understands, would be called a problem: no URL."""
    monkeypatch.setenv("NOWCAST_SERVER", "embedded")
    assert "spectral (mode glide) takes" in call("doctored:build").stdout


def test_it_is_told_of_the_mode_and_of_what_is_trained() -> None:
    """A user who jumps would learn what another forecaster costs; one who tunes an adapter the traffic of the whole model."""
    wired, traffic, forecast = examine("doctored:tuned", None, Question(mode="jump", max_steps=2000), token=None, inputs=None)
    assert "100.0% of 68 weights are wired" in wired.text
    assert "a snapshot of 272 bytes" in traffic.text
    assert "every 5 intervals; with intervals of 40 steps" in traffic.text
    assert "nino (mode jump) takes" in forecast.text


@pytest.mark.parametrize(("forecaster", "fine", "says"), [("nino", False, "give --inputs"), (None, True, "does not need it")])
def test_a_network_that_is_not_understood(forecaster: str | None, says: str, *, fine: bool) -> None:
    """Forecasts that see nothing of the network would be taken for good ones; or a user be sent after what no forecast reads."""
    findings = examine("doctored:Odd", None, Question(forecaster), token=None, inputs=None)
    assert findings[0].fine == fine
    assert says in findings[0].text


def test_a_file_of_weights_may_lie_deep() -> None:
    """A traceback, where the path is longer than a forecaster's name may be."""
    weights = f"/{'deep/' * 20}mine.pt"
    *_, forecast = examine("doctored:build", None, Question(weights), token=None, inputs=None)
    assert f"cannot read the checkpoint {weights}" in forecast.text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [((), "give MODULE:CALLABLE"), (("nowhere:x",), "No module named"), (("doctored:build", "--dtype", "int8"), "--dtype")],
)
def test_mistakes_are_one_sentence(arguments: tuple[str, ...], says: str) -> None:
    """A traceback in place of what is wrong with the command."""
    done = call(*arguments)
    assert done.exit_code in (1, 2)
    assert isinstance(done.exception, SystemExit)
    assert says in done.output


def test_a_server_that_is_not_there() -> None:
    """The first thing that goes wrong for everyone."""
    findings = examine(None, "http://127.0.0.1:9", Question(), token=None, inputs=None)
    assert [finding.fine for finding in findings] == [False]
    assert "`nowcast-server run` starts one" in findings[0].text


def test_a_server(server: ServerProcess) -> None:
    """Reachable and compatible, but without the forecaster, or without room for the job: each is told by itself."""
    fine = examine("doctored:build", server.url, Question(), token=None, inputs=None)
    assert all(finding.fine for finding in fine)
    assert fine[-1].text == "the server takes the job"
    missing = examine("doctored:build", server.url, Question("nano"), token=None, inputs=None)
    assert "there is no forecaster 'nano'; there are" in missing[-1].text
