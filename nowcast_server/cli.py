"""`nowcast-server`: run a server, make tokens, look at checkpoints. Heavy imports come after the arguments."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from nowcast_server.cli_options import CHECKPOINT_HELP, settings_of
from nowcast_server.embedding import embed
from nowcast_server.nino.cli import app as checkpoints
from nowcast_server.selftest.cli import selftest
from nowcast_server.serve.cli import serve_on_ray
from protos import command

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Serve nowcasts, make tokens, look at checkpoints.",
    pretty_exceptions_enable=False,
    callback=command.with_version,
)

Option = typer.Option


@app.command()
def run(  # noqa: PLR0917 -- typer passes every option by name
    host: Annotated[str | None, Option(help="Address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[int | None, Option(help="Port to listen on; 0 takes a free one.", show_default="8440")] = None,
    uds: Annotated[Path | None, Option(help="Unix socket to listen on instead.")] = None,
    device: Annotated[str | None, Option(help="Where to forecast: auto, cpu, cuda, cuda:1, …", show_default="auto")] = None,
    device_memory: Annotated[str | None, Option(help="Memory of a CUDA device to use.", show_default="0.9 of what is free")] = None,
    checkpoint: Annotated[list[str] | None, Option(help=CHECKPOINT_HELP, metavar="[NAME=]FILE")] = None,
    memory: Annotated[str | None, Option(help="Memory for all histories.", show_default="8GiB")] = None,
    max_snapshot: Annotated[str | None, Option(help="Largest snapshot.", show_default="4GiB")] = None,
    forecast_memory: Annotated[str | None, Option(help="Memory for forecasts in flight.", show_default="8GiB")] = None,
    token_file: Annotated[Path | None, Option(help="File with lines tenant:token or tenant:sha256:HEX.")] = None,
    tls_cert: Annotated[Path | None, Option(help="Certificate for HTTPS.")] = None,
    tls_key: Annotated[Path | None, Option(help="Its key, unless it is in the same file.")] = None,
    tls_ca: Annotated[Path | None, Option(help="Accept only clients with a certificate of this authority.")] = None,
    allow_anonymous: Annotated[bool | None, Option("--allow-anonymous", help="Listen beyond loopback without tokens.")] = None,
    idle_s: Annotated[float | None, Option(help="Forget a job after this long without a call.", show_default="21600")] = None,
    drain_s: Annotated[float | None, Option(help="Time for work in flight after SIGTERM.", show_default="60")] = None,
    threads: Annotated[int | None, Option(help="Threads of torch; 0 leaves the choice to torch.", show_default="0")] = None,
    log_level: Annotated[str | None, Option(help="debug, info, warning or error.", show_default="info")] = None,
    log_format: Annotated[str | None, Option(help="text or json.", show_default="text")] = None,
    record: Annotated[Path | None, Option(help="Folder in which to keep the snapshots of jobs that allow it.")] = None,
) -> None:
    """Serve nowcasts until SIGTERM. Every option can also be set in the environment, --host as NOWCAST_HOST (--checkpoint as
    NOWCAST_CHECKPOINTS).
    """
    given: dict[str, Any] = {**locals(), "checkpoints": checkpoint and tuple(checkpoint)}
    del given["checkpoint"]
    settings = settings_of(given)
    from nowcast_server.tokens import Tokens, check_exposure
    from nowcast_server.web.tls import tls_options

    try:
        check_exposure(settings, Tokens.load(settings))  # before torch is imported: a mistake is told at once
        tls_options(settings)
        from nowcast_server.running import serve

        sys.exit(serve(settings))
    except (OSError, ValueError) as error:
        typer.echo(f"nowcast-server: {error}", err=True)
        sys.exit(2)


@app.command()
def token(tenant: str) -> None:
    """Make a token for TENANT: the line for the server's token file (it holds only a hash), and the token itself."""
    from nowcast_server.tokens import Tokens, digest, new_token

    made = new_token()
    line = f"{tenant}:sha256:{digest(made).hex()}"
    try:
        Tokens.parse(line, source="")
    except ValueError:
        detail = f"{tenant!r}: 1 to 64 letters, digits, '.', '_', '-', the first a letter or digit"
        raise typer.BadParameter(detail, param_hint="TENANT") from None
    typer.echo(line)
    typer.echo(f"token, shown only now: {made}", err=True)


app.command(name="serve-on-ray")(serve_on_ray)
app.command()(embed)
app.command()(selftest)


app.add_typer(checkpoints, name="checkpoint")


def main() -> None:
    """The command `nowcast-server`."""
    command.run(app, name="nowcast-server")
