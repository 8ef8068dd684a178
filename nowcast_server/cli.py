"""`nowcast-server`: run a server, make tokens, test a device. Heavy imports come after the arguments."""

import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from protos import command
from protos.errors import NowcastError

if TYPE_CHECKING:
    from nowcast_server.settings import Settings

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Serve nowcasts, make tokens, test a device.",
    pretty_exceptions_enable=False,
    callback=command.with_version,
)

Option = typer.Option
Host = Annotated[str | None, Option(help="Address to listen on.", show_default="127.0.0.1")]
Checkpoints = Annotated[
    list[str] | None,
    Option(
        "--checkpoint",
        help="Weights that replace the package's nino or wnn; with a NAME, a further forecaster of that name. May be repeated.",
        metavar="[NAME=]FILE",
    ),
]
Memory = Annotated[str | None, Option(help="Memory for all histories (of a replica).", show_default="8GiB")]
TokenFile = Annotated[Path | None, Option(help="File with lines tenant:token or tenant:sha256:HEX.")]
Certificate = Annotated[Path | None, Option(help="Certificate for HTTPS.")]
Key = Annotated[Path | None, Option(help="Its key, unless it is in the same file.")]
Anonymous = Annotated[bool | None, Option("--allow-anonymous", help="Listen beyond loopback without tokens.")]
LogLevel = Annotated[str | None, Option(help="debug, info, warning or error.", show_default="info")]
LogFormat = Annotated[str | None, Option(help="text or json.", show_default="text")]


@app.command()
def run(  # noqa: PLR0917 -- typer passes every option by name
    host: Host = None,
    port: Annotated[int | None, Option(help="Port to listen on; 0 takes a free one.", show_default="8440")] = None,
    uds: Annotated[Path | None, Option(help="Unix socket to listen on instead.")] = None,
    device: Annotated[str | None, Option(help="Where to forecast: auto, cpu, cuda, cuda:1, …", show_default="auto")] = None,
    device_memory: Annotated[str | None, Option(help="Memory of a CUDA device to use.", show_default="0.9 of what is free")] = None,
    checkpoints: Checkpoints = None,
    memory: Memory = None,
    max_snapshot: Annotated[str | None, Option(help="Largest snapshot.", show_default="4GiB")] = None,
    forecast_memory: Annotated[str | None, Option(help="Memory for forecasts in flight.", show_default="8GiB")] = None,
    token_file: TokenFile = None,
    tls_cert: Certificate = None,
    tls_key: Key = None,
    tls_ca: Annotated[Path | None, Option(help="Accept only clients with a certificate of this authority.")] = None,
    allow_anonymous: Anonymous = None,
    idle_s: Annotated[float | None, Option(help="Forget a job after this long without a call.", show_default="21600")] = None,
    drain_s: Annotated[float | None, Option(help="Time for work in flight after SIGTERM.", show_default="60")] = None,
    threads: Annotated[int | None, Option(help="Threads of torch; 0 leaves the choice to torch.", show_default="0")] = None,
    log_level: LogLevel = None,
    log_format: LogFormat = None,
    record: Annotated[Path | None, Option(help="Folder in which to keep the snapshots of jobs that allow it.")] = None,
) -> None:
    """Serve nowcasts until SIGTERM.

    Every option is also an environment variable: --host is NOWCAST_HOST, but --checkpoint is NOWCAST_CHECKPOINTS.
    """
    settings = _settings_of(locals())
    from nowcast_server.tokens import Tokens, check_exposure

    try:
        check_exposure(settings, Tokens.load(settings))  # before torch is imported: a mistake is told at once
        settings.tls_options()
        from nowcast_server.running import serve

        sys.exit(serve(settings))
    except (OSError, ValueError) as error:
        _fail(error)


@app.command()
def serve_on_ray(
    *,
    address: Annotated[str | None, Option(help="Address of a Ray cluster, e.g. auto; by default one is started here.")] = None,
    replicas: Annotated[int, Option(min=1, help="Number of replicas; with --max-replicas, the least.")] = 1,
    max_replicas: Annotated[int | None, Option(help="Most replicas to scale up to.")] = None,
    at_hand: Annotated[float, Option(help="Forecasts waiting or running per replica before another is added.", min=0.1)] = 4.0,
    upscale_delay_s: Annotated[float, Option(help="Scale up after the load has been high for this long.", min=0)] = 30,
    downscale_delay_s: Annotated[float, Option(help="Scale down after the load has been low for this long.", min=0)] = 600,
    cpus: Annotated[float, Option(help="CPUs of each replica, and threads of torch.")] = 1.0,
    gpus: Annotated[float, Option(help="GPUs of each replica; 0.5 puts two on one GPU.")] = 0.0,
    name: Annotated[str, Option(help="Name of the Serve application; nowcast submit finds the server by it.")] = "nowcast",
    prefix: Annotated[str, Option(help="Prefix of all paths, for several servers on one cluster.")] = "/",
    host: Host = None,
    port: Annotated[int | None, Option(help="Port the proxies listen on.", show_default="8440")] = None,
    checkpoints: Checkpoints = None,
    memory: Memory = None,
    token_file: TokenFile = None,
    allow_anonymous: Anonymous = None,
    tls_cert: Certificate = None,
    tls_key: Key = None,
    log_level: LogLevel = None,
    log_format: LogFormat = None,
    stay: Annotated[bool, Option(help="Stay, and stop the server at SIGTERM; --no-stay leaves it running on the cluster.")] = True,
) -> None:
    """Serve nowcasts from replicas on a Ray cluster.

    Set everything else by NOWCAST_* variables on its nodes. The files of checkpoints and certificates must be on the nodes, too;
    of the token file replicas get only the hashes.
    """
    given = _given(locals())
    largest = replicas if max_replicas is None else max_replicas
    if largest < replicas:
        raise typer.BadParameter(f"must be at least --replicas, {replicas}", param_hint="--max-replicas")
    if address is None and not stay:
        raise typer.BadParameter("a cluster of this command's own ends with it; give --address", param_hint="--no-stay")
    _settings_of(given)  # before ray is imported: a mistake is told at once
    from nowcast_server.serve.application import Replicas, serve_on_ray

    try:
        serve_on_ray(
            given,
            address=address,
            replicas=Replicas(replicas, largest, cpus, gpus, at_hand, upscale_delay_s, downscale_delay_s),
            stay=stay,
            name=name,
            prefix=prefix,
        )
    except (OSError, ValueError, RuntimeError) as error:
        _fail(error)


@app.command()
def token(tenant: str) -> None:
    """Make a token for TENANT. Prints the line for the token file (only a hash) to stdout, and the token itself to stderr."""
    from nowcast_server.tokens import Tokens, digest

    made = secrets.token_urlsafe(32)
    line = f"{tenant}:sha256:{digest(made).hex()}"
    try:
        Tokens.parse(line, source="")
    except ValueError:
        detail = f"{tenant!r}: 1 to 64 letters, digits, '.', '_', '-', the first a letter or digit"
        raise typer.BadParameter(detail, param_hint="TENANT") from None
    typer.echo(line)
    typer.echo(f"token, shown only now: {made}", err=True)


@app.command()
def embed(
    folder: Annotated[Path, typer.Argument(help="Trajectories, as --record keeps them.", show_default=False)],
    *,
    out: Annotated[Path, Option(help="Table (.csv), arrays (.npz) or picture (.svg).")] = Path("map.csv"),
    by: Annotated[Literal["loss", "step", "lr", "seed"], Option(help="What the colours of a picture show.")] = "loss",
    checkpoint: Annotated[Path | None, Option(help="Weights of a graph network; the package's nino by default.")] = None,
    basis: Annotated[Path | None, Option(help="An earlier .npz: use its axes, so that its runs stay in place.")] = None,
) -> None:
    """Draw a map of recorded runs of one network: embed their contexts with the graph network, and project to two axes.

    Embeddings do not depend on how neurons are numbered, so runs of different seeds can be compared.
    """
    from nowcast_server import map_picture

    try:
        map_picture.embed(folder, out=out, by=by, checkpoint=checkpoint, basis=basis)
    except (NowcastError, OSError, ValueError, KeyError) as error:  # of the last two, a basis that is none
        _fail(error, status=1)


@app.command()
def selftest(
    device: Annotated[str, Option(help="Device to test: auto, cpu, cuda, cuda:1, …")] = "auto",
    checkpoint: Annotated[Path | None, Option(help="Weights that replace the package's nino.")] = None,
    json_file: Annotated[Path | None, Option("--json", help="Write all figures to this file.")] = None,
) -> None:
    """Check that forecasts are right on this machine's device, and measure their speed. Exit status 1 if a check fails."""
    from nowcast_server.selftest import cli

    try:
        sys.exit(cli.selftest(device, checkpoint, json_file))
    except (NowcastError, OSError) as error:
        _fail(error)


def main() -> None:
    """The command `nowcast-server`."""
    command.run(app, name="nowcast-server")


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """The settings among options that were given, as values that Ray takes as well."""
    from nowcast_server.settings import Settings

    given = {name: value for name, value in options.items() if name in Settings.model_fields and value is not None}
    return {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}


def _settings_of(options: dict[str, Any]) -> "Settings":
    """The settings, those that are not given left to the environment. A BadParameter names the option or variable at fault."""
    from pydantic import ValidationError

    from nowcast_server.settings import Settings

    try:
        return Settings(**_given(options))
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        option = "--checkpoint" if name == "checkpoints" else f"--{name.replace('_', '-')}"
        hint = f"NOWCAST_{name.upper()}" if options.get(name) is None else option
        raise typer.BadParameter(first["msg"].removeprefix("Value error, "), param_hint=hint) from None


def _fail(error: Exception, *, status: int = 2) -> None:
    typer.echo(f"nowcast-server: {error}", err=True)
    sys.exit(status)
