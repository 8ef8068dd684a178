"""`nowcast-server serve-on-ray`. Heavy imports come after the arguments."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from nowcast_server.cli_options import CHECKPOINT_HELP, settings_of

Option = typer.Option


def serve_on_ray(
    *,
    address: Annotated[
        str | None, Option(help="Address of a Ray cluster, e.g. auto. By default one is started on this machine.")
    ] = None,
    replicas: Annotated[int, Option(min=1, help="Number of replicas; with --max-replicas, the least.")] = 1,
    max_replicas: Annotated[int | None, Option(help="Most replicas to scale up to.")] = None,
    at_hand: Annotated[float, Option(help="Forecasts waiting or running per replica before another is added.", min=0.1)] = 4.0,
    upscale_delay_s: Annotated[float, Option(help="Scale up after the load has been high for this long.", min=0)] = 30,
    downscale_delay_s: Annotated[float, Option(help="Scale down after the load has been low for this long.", min=0)] = 600,
    cpus: Annotated[float, Option(help="CPUs of each replica, and threads of torch.")] = 1.0,
    gpus: Annotated[float, Option(help="GPUs of each replica; 0.5 puts two on one GPU.")] = 0.0,
    name: Annotated[str, Option(help="Name of the Serve application; nowcast submit finds the server by it.")] = "nowcast",
    prefix: Annotated[str, Option(help="Prefix of all paths, for several servers on one cluster.")] = "/",
    host: Annotated[str | None, Option(help="Address the proxies listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[int | None, Option(help="Port the proxies listen on.", show_default="8440")] = None,
    checkpoint: Annotated[
        list[str] | None, Option(help=f"{CHECKPOINT_HELP} The file must be on every node.", metavar="[NAME=]FILE")
    ] = None,
    memory: Annotated[str | None, Option(help="Memory for all histories of a replica.", show_default="8GiB")] = None,
    token_file: Annotated[
        Path | None, Option(help="File with lines tenant:token or tenant:sha256:HEX. Replicas get hashes only.")
    ] = None,
    allow_anonymous: Annotated[bool | None, Option("--allow-anonymous", help="Listen beyond loopback without tokens.")] = None,
    tls_cert: Annotated[Path | None, Option(help="Certificate for HTTPS, on every node.")] = None,
    tls_key: Annotated[Path | None, Option(help="Its key.")] = None,
    log_level: Annotated[str | None, Option(help="debug, info, warning or error.", show_default="info")] = None,
    log_format: Annotated[str | None, Option(help="text or json.", show_default="text")] = None,
    stay: Annotated[
        bool, Option(help="Stay, and take the server down at SIGTERM; with --no-stay, leave it on the cluster.")
    ] = True,
) -> None:
    """Serve nowcasts from replicas on a Ray cluster. Other settings are NOWCAST_* variables on its nodes."""
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
