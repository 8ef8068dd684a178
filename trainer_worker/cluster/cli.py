"""`nowcast submit`: training jobs on a Ray cluster. Heavy imports come after the arguments."""

import json
import os
import shlex
import uuid
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from trainer_worker.errors import CommandFailed
from trainer_worker.names import plain_name

app = typer.Typer(pretty_exceptions_enable=False)

CACHES: Final = ("__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache")
EXCLUDES: Final = [".git", ".venv", "venv", *CACHES, "node_modules", "runs", "wandb"]  # large, and of no use there
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
    server: Annotated[str, Option(help="URL of a nowcast server, serve:NAME on the cluster, or embedded.")] = "serve:nowcast",
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
    least, most = _workers(workers)
    for_workers = {"--workers": most > 1, "--gpus": gpus, "--storage": storage}
    if driver and (unused := [name for name, given in for_workers.items() if given]):
        what = f"the script starts its workers itself, and says where checkpoints go; leave out {' and '.join(unused)}"
        raise typer.BadParameter(what, param_hint="--driver")
    if storage and "://" not in storage and not storage.startswith(("/", "~")):
        what = f"{storage!r} would lie in the upload, on one node, until Ray deletes that; give a whole path, or s3://, gs://, …"
        raise typer.BadParameter(what, param_hint="--storage")
    variables = dict(map(_variable, env or ()))
    folder = _folder(script, working_dir)
    submission = name or f"{plain_name(script.stem, most=40)}-{uuid.uuid4().hex[:8]}"
    options = {"name": submission, "workers": [least, most], "cpus": cpus, "gpus": gpus}
    options |= {"max_failures": max_failures, "storage": storage}
    start = [] if driver else ["-m", "trainer_worker.cluster.script", json.dumps(options)]
    job = {
        "submission_id": submission,
        "entrypoint": shlex.join(["python", *start, script.resolve().relative_to(folder).as_posix(), *(arguments or ())]),
        "runtime_env": {"working_dir": str(folder), "excludes": EXCLUDES, "env_vars": variables, **({"pip": pip} if pip else {})},
    }
    if why := _send(job, address=address, server=server, follow=follow):
        typer.secho(f"{submission} {why}", err=True, fg="red")
        raise typer.Exit(1)


def _send(job: dict[str, Any], *, address: str | None, server: str, follow: bool) -> str:
    """Start the job, and say how to look after it; with `follow`, why it did not succeed, else "".
    Raises CommandFailed: nothing was started, or the cluster is gone.
    """
    from trainer_worker.cluster import connection

    client = connection.connect(address)
    submission, environment = job["submission_id"], job["runtime_env"]
    # what `Nowcast` looks at when its arguments leave it open
    url, token = connection.find_server(client, server), os.environ.get("NOWCAST_TOKEN")
    told = {"NOWCAST_SERVER": url, "NOWCAST_TOKEN": token, "NOWCAST_JOB": submission, "PYTHONUNBUFFERED": "1"}
    environment["env_vars"] = {key: value for key, value in told.items() if value is not None} | environment["env_vars"]
    connection.send(client, job)
    typer.echo(f"submitted {submission}")
    at = f"--address {address} " if address else ""
    for command in ("status", "logs --follow", "stop"):
        typer.echo(f"  ray job {command} {at}{submission}", err=True)
    return connection.follow(client, submission) if follow else ""


def _workers(text: str) -> tuple[int, int]:
    """`4`, or `2:8` for an elastic number."""
    first, _, second = text.partition(":")
    try:
        least, most = int(first), int(second or first)
    except ValueError:
        least, most = 0, 0
    if not 1 <= least <= most:
        raise typer.BadParameter("give a number, or LEAST:MOST", param_hint="--workers")
    return least, most


def _folder(script: Path, given: Path | None) -> Path:
    """The folder to upload, which holds the script."""
    if not script.is_file():
        raise CommandFailed(f"there is no file {script}")
    if script.suffix == ".toml":
        trained = f"nowcast train {script} --address auto --server URL --storage PLACE"
        raise CommandFailed(f"of a configuration: ray job submit --working-dir . -- {trained}")
    folder = (given or script.parent).resolve()
    if not script.resolve().is_relative_to(folder):
        raise CommandFailed(f"{script} is not in the working directory {folder}: give one that holds it with --working-dir")
    return folder


def _variable(text: str) -> tuple[str, str]:
    name, found, value = text.partition("=")
    if not found or not name.isidentifier():
        raise typer.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="--env")
    return name, value
