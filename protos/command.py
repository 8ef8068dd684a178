"""What both commands share: their version, output that any terminal takes, one sentence for a package that is missing."""

import re
import sys
from importlib.metadata import requires, version
from typing import Annotated, Final

import typer

from protos import DISTRIBUTION

_PART_OF: Final = {"fsspec": "ray", "grpc": "ray", "grpc_reflection": "ray", "pyarrow": "ray"}  # come with another's extra


def run(app: typer.Typer, *, name: str) -> None:
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="replace")  # an ASCII or cp1252 terminal shows ? in place of what it cannot show
    try:
        app(prog_name=name)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if (extra := _extra_of(missing)) is None:
            raise
        print(f"{name}: {missing} is not installed: pip install '{DISTRIBUTION}[{extra}]'", file=sys.stderr)  # noqa: T201
        sys.exit(2)


def _extra_of(module: str) -> str | None:
    """The extra of this distribution that brings a module, None if none does."""
    wanted = _PART_OF.get(module, module).replace("_", "-").lower()
    for line in requires(DISTRIBUTION) or ():
        found = re.match(r"([\w.-]+).*;.*extra == ['\"]([\w-]+)['\"]", line)
        if found and found[1].replace("_", "-").lower() == wanted:
            return found[2]
    return None


def _show_version(wanted: bool) -> None:  # noqa: FBT001  (typer's callbacks take the value alone)
    if wanted:
        typer.echo(version(DISTRIBUTION))
        raise typer.Exit


def with_version(
    *,
    _: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version, and exit.")
    ] = False,
) -> None:
    """Callback of a command line: gives it `--version`."""
