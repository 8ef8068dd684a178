"""`nowcast-server checkpoint show|convert`."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nowcast_server.nino.cli import app

RUNNER = CliRunner()


@pytest.mark.parametrize(("name", "forecaster"), [("nino_no_posw", "nino"), ("nino_mlp_h32", "wnn")])
def test_convert_then_show(name: str, forecaster: str, shared: Path, tmp_path: Path) -> None:
    """The published weights could not be brought into the project's format from the command line."""
    target = tmp_path / "a.safetensors"
    source = shared / "checkpoints" / f"{name}.pt"
    converted = RUNNER.invoke(app, ["convert", str(source), str(target), "--name", "mine", "--note", "why"])
    assert converted.exit_code == 0, converted.output
    about = json.loads(RUNNER.invoke(app, ["show", str(target)]).output)
    assert (about["name"], about["note"], about["forecaster"]) == ("mine", "why", forecaster)
    assert about["tensors"]["edge_in.0.bias"] == str(about["options"]["hidden"])


def test_a_wrong_file_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    """A user's slip would end in a traceback."""
    (tmp_path / "a.pt").write_text("hello")
    for arguments in (["show", str(tmp_path / "a.pt")], ["convert", str(tmp_path / "a.pt"), str(tmp_path / "b.safetensors")]):
        result = RUNNER.invoke(app, arguments)
        assert result.exit_code == 1
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1
