"""`nowcast submit`: training jobs on a Ray cluster. Heavy imports come after the arguments."""

import os
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Never

import typer

app = typer.Typer(pretty_exceptions_enable=False)

Option = typer.Option
Address = Annotated[
    str | None, Option(help="Address of the cluster: http://HEAD:8265, or auto.", show_default="RAY_ADDRESS, or this machine's")
]


@app.command(context_settings={"allow_interspersed_args": True})
def submit(
    script: Annotated[Path, typer.Argument(help="Python file of your own that uses Nowcast.", show_default=False)],
    arguments: Annotated[
        list[str] | None, typer.Argument(help="Arguments of the script, after --.", metavar="-- ARGS", show_default=False)
    ] = None,
    *,
    address: Address = None,
    server: Annotated[
        str, Option(help="URL of a nowcast server, serve:NAME of one on the cluster, or embedded.")
    ] = "serve:nowcast",
    name: Annotated[str | None, Option(help="Name of the job, unique on the cluster.", show_default="made from the file's")] = None,
    workers: Annotated[str, Option(help="Processes that run the script: a number, or LEAST:MOST for as many as fit.")] = "1",
    driver: Annotated[bool, Option("--driver", help="Run the script once; it starts its Ray workers itself.")] = False,
    gpus: Annotated[float, Option(help="GPUs of each worker.")] = 0,
    cpus: Annotated[float, Option(help="CPUs of each worker.")] = 1,
    max_failures: Annotated[int, Option(help="Restarts after a lost worker or node; -1 for no limit.")] = 3,
    storage: Annotated[str | None, Option(help="Where checkpoints go: a path that all nodes share, or s3://, gs://, …")] = None,
    working_dir: Annotated[Path | None, Option(help="Folder to upload.", show_default="the script's")] = None,
    pip: Annotated[list[str] | None, Option(help="Package the script needs; may be repeated.", show_default=False)] = None,
    env: Annotated[list[str] | None, Option(help="NAME=VALUE for script and workers; may be repeated.", show_default=False)] = None,
    follow: Annotated[bool, Option("--follow", "-f", help="Print the log until the job ends, and exit with its status.")] = False,
) -> None:
    """Submit a training job to a Ray cluster. The server's token is read from NOWCAST_TOKEN."""
    from trainer_worker.cluster.submission import parse_workers, prepare
    from trainer_worker.errors import CommandFailed

    try:
        parse_workers(workers)
    except ValueError:
        raise typer.BadParameter("give a number, or LEAST:MOST", param_hint="--workers") from None
    variables = dict(_variable(text) for text in env or ())
    if not script.is_file():
        _fail(f"there is no file {script}")
    if script.suffix == ".toml":
        trained = f"nowcast train {script} --address auto --server URL --storage PLACE"
        _fail(f"of a configuration: ray job submit --working-dir . -- {trained}")
    options = ["--workers", workers, "--max-failures", f"{max_failures}", "--cpus", f"{cpus:g}", "--gpus", f"{gpus:g}"]
    options += ["--storage", storage] if storage else []
    try:
        from trainer_worker.cluster import connection

        client = connection.connect(address)
        job = prepare(
            script, arguments or (), find_server=partial(connection.find_server, client), server=server, name=name,
            workers=None if driver else options, working_dir=working_dir, pip=pip or (), variables=variables,
            token=os.environ.get("NOWCAST_TOKEN"),
        )  # fmt: skip
        connection.send(client, job)
        submission = job["submission_id"]
        typer.echo(f"submitted {submission}")
        at = f"--address {address} " if address else ""
        for command in ("status", "logs --follow", "stop"):
            typer.echo(f"  ray job {command} {at}{submission}", err=True)
        if follow and (why := connection.follow(client, submission)):
            _fail(f"{submission} {why}", code=1)
    except CommandFailed as error:
        _fail(str(error))
    except KeyboardInterrupt:
        sys.exit(130)


def _variable(text: str) -> tuple[str, str]:
    name, found, value = text.partition("=")
    if not found or not name.isidentifier():
        raise typer.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="--env")
    return name, value


def _fail(message: str, *, code: int = 2) -> Never:
    typer.secho(message, err=True, fg="red")
    raise typer.Exit(code)
