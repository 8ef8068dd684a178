"""What both commands do: their version, any terminal, a package that is missing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import nowcast_server.cli
import trainer_worker.cli

DEMO = Path(__file__).resolve().parents[2] / "deploy/demo.toml"


def call(*arguments: str, encoding: str = "utf-8") -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "COLUMNS": "60"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, env=environment, check=False)


@pytest.mark.parametrize("app", [trainer_worker.cli.app, nowcast_server.cli.app])
def test_version(app: typer.Typer) -> None:
    """Nobody could say in a report which version a fault was seen with."""
    done = CliRunner().invoke(app, ["--version"])
    assert done.exit_code == 0
    assert done.output.count(".") >= 1


@pytest.mark.parametrize("words", ["trainer_worker keys ascii", "nowcast_server run --help cp1252"])
def test_a_terminal_that_is_not_utf_8(words: str) -> None:
    """Three dots in a description would end the command with a UnicodeEncodeError."""
    *arguments, encoding = words.split()
    done = call("-m", *arguments, encoding=encoding)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode(encoding)


WITHOUT = "import sys; sys.modules[{missing!r}] = None; from {module}.cli import main; sys.argv = {arguments}; main()"


@pytest.mark.parametrize(
    ("module", "arguments", "missing"),
    [
        ("nowcast_server", ["nowcast-server", "serve-on-ray"], "ray"),
        ("nowcast_server", ["nowcast-server", "run", "--port", "0"], "fastapi"),
        ("trainer_worker", ["nowcast", "compare", str(DEMO)], "pyarrow"),
    ],
)
def test_a_missing_extra_is_one_sentence(module: str, arguments: list[str], missing: str) -> None:
    """A traceback about a package that the user never heard of."""
    done = call("-c", WITHOUT.format(missing=missing, module=module, arguments=arguments))
    told = done.stderr.decode()
    assert done.returncode == 2
    assert told.startswith(f"{arguments[0]}: {missing} is not installed: pip install '")
    assert told.count("\n") == 1


def test_other_missing_modules_are_told_in_full() -> None:
    """A fault of ours, or of a user's module, would look like an extra that is not installed."""
    done = call("-c", "from protos.command import run; run(lambda prog_name: __import__('no_such_module'), name='nowcast')")
    assert b"Traceback" in done.stderr
    assert b"no_such_module" in done.stderr
