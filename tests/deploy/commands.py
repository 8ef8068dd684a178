"""Deployment files as Python values, and command lines as our commands and Ray's would read them, without running them."""

import shlex
from pathlib import Path
from typing import Any

import typer
import yaml

ROOT = Path(__file__).resolve().parents[2]


def document(path: str) -> Any:
    """The only document of a YAML file, named from the repository's root."""
    return yaml.safe_load((ROOT / path).read_text())


def parse(line: str | list[str]) -> dict[str, Any]:
    """The options and arguments of a `nowcast`, `nowcast-server` or `ray` command line.

    Raises:
        click.UsageError: it would be refused.
    """
    words = shlex.split(line) if isinstance(line, str) else line
    command, arguments = _group(words[0]), words[1:]
    with command.make_context(words[0], list(arguments)) as context:
        name, subcommand, rest = command.resolve_command(context, [*getattr(context, "_protected_args", []), *context.args])
        with subcommand.make_context(name, rest, parent=context) as inner:
            return dict(inner.params)


def _group(name: str) -> Any:
    if name == "ray":
        from ray.scripts.scripts import cli

        return cli
    if name == "nowcast":
        from trainer_worker.cli import app
    else:
        assert name == "nowcast-server", name
        from nowcast_server.cli import app
    return typer.main.get_command(app)
