"""`nowcast-server serve-on-ray`. Heavy imports come after the arguments."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from nowcast_server.cli_options import CHECKPOINT_HELP, settings_of

Option = typer.Option


def serve_on_ray(
    *,
    address: Annotated[str | None, Option(help="Of a Ray cluster, e.g. auto. By default one is started on this machine.")] = None,
    replicas: Annotated[int, Option(min=1, help="How many; the least, if --max-replicas is given.")] = 1,
    max_replicas: Annotated[int | None, Option(help="Scale up to so many on forecasts at hand.")] = None,
    at_hand: Annotated[float, Option(help="Forecasts that may wait or run on each before there is another.", min=0.1)] = 4.0,
    upscale_delay_s: Annotated[float, Option(help="More must have been wanted for so long.", min=0)] = 30,
    downscale_delay_s: Annotated[float, Option(help="Fewer must have been wanted for so long.", min=0)] = 600,
    cpus: Annotated[float, Option(help="Of each replica; also torch's threads.")] = 1.0,
    gpus: Annotated[float, Option(help="Of each replica; 0.5 puts two on a GPU.")] = 0.0,
    name: Annotated[str, Option(help="Of the Serve application; nowcast submit finds the server by it.")] = "nowcast",
    prefix: Annotated[str, Option(help="Of all paths; several servers can share a cluster.")] = "/",
    host: Annotated[str | None, Option(help="Address the proxies listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[int | None, Option(help="Port the proxies listen on.", show_default="8440")] = None,
    checkpoint: Annotated[list[str] | None, Option(help=f"{CHECKPOINT_HELP} On every node.", metavar="[NAME=]FILE")] = None,
    memory: Annotated[str | None, Option(help="For all histories of a replica, e.g. 8GiB.", show_default="8GiB")] = None,
    token_file: Annotated[Path | None, Option(help="Lines tenant:token or tenant:sha256:HEX. Replicas get the hashes.")] = None,
    allow_anonymous: Annotated[bool | None, Option("--allow-anonymous", help="Listen beyond loopback without tokens.")] = None,
    tls_cert: Annotated[Path | None, Option(help="Certificate for HTTPS, on every node.")] = None,
    tls_key: Annotated[Path | None, Option(help="Its key.")] = None,
    log_level: Annotated[str | None, Option(help="debug, info, warning or error.", show_default="info")] = None,
    log_format: Annotated[str | None, Option(help="text or json.", show_default="text")] = None,
    stay: Annotated[bool, Option(help="Take the server down at SIGTERM; with --no-stay leave it to the cluster.")] = True,
) -> None:
    """Serve nowcasts from replicas on a Ray cluster. Further settings as NOWCAST_OPTION in the environment of its nodes."""
    given: dict[str, Any] = {
        "host": host,
        "port": port,
        "checkpoints": checkpoint,
        "memory": memory,
        "token_file": token_file and str(token_file),
        "allow_anonymous": allow_anonymous,
        "log_level": log_level,
        "log_format": log_format,
    }
    if (max_replicas or replicas) < replicas:
        raise typer.BadParameter(f"must be at least --replicas, {replicas}", param_hint="--max-replicas")
    if (tls_cert is None) != (tls_key is None):
        raise typer.BadParameter("a certificate needs its key, and a key its certificate", param_hint="--tls-cert")
    if address is None and not stay:
        raise typer.BadParameter("a cluster of this command's own ends with it; give --address", param_hint="--no-stay")
    settings_of(given)  # before ray is imported: a mistake is told at once
    from nowcast_server.serve import launch

    try:
        launch.serve_on_ray(
            {name: value for name, value in given.items() if value is not None},
            address=address,
            replicas=launch.Replicas(replicas, max_replicas or replicas, cpus, gpus, at_hand, upscale_delay_s, downscale_delay_s),
            stay=stay,
            name=name,
            prefix=prefix,
            tls=launch.Tls(str(tls_cert), str(tls_key)) if tls_cert else None,
        )
    except (ConnectionError, OSError, ValueError, RuntimeError) as error:
        typer.echo(f"nowcast-server: {error}", err=True)
        sys.exit(2)
