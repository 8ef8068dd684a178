"""`nowcast-server checkpoint`: look at checkpoints and bring published ones into this project's format."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Show and convert checkpoints.", no_args_is_help=True)

Source = Annotated[Path, typer.Argument(help="A published .pt or a .safetensors checkpoint.", show_default=False)]


@app.command()
def show(path: Source) -> None:
    """Print what a checkpoint holds, as JSON: forecaster, context, horizons, options, tensors."""
    from nowcast_server.nino import checkpoint

    with _errors():
        about = checkpoint.show(path)
    about["tensors"] = {name: " x ".join(map(str, shape)) for name, shape in about["tensors"].items()}
    typer.echo(json.dumps(about, indent=1))


@app.command()
def convert(
    source: Source,
    target: Annotated[Path, typer.Argument(help="Where to write the .safetensors file.", show_default=False)],
    *,
    name: Annotated[str | None, typer.Option(help="Name of the weights.")] = None,
    note: Annotated[str | None, typer.Option(help="How they were trained.")] = None,
) -> None:
    """Write any checkpoint as .safetensors with a JSON header."""
    from nowcast_server.nino import checkpoint

    with _errors():
        converted = checkpoint.convert(source, target, name=name, note=note)
    typer.echo(f"{target}: {converted.name}, {converted.size:,} weights")


@contextmanager
def _errors() -> Iterator[None]:
    """Turns a `NowcastError` into one line and exit code 1."""
    from protos.errors import NowcastError

    try:
        yield
    except NowcastError as error:
        typer.secho(f"error: {error.detail}", fg="red", err=True)
        raise typer.Exit(1) from error
