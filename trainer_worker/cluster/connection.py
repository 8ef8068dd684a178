"""A Ray cluster as seen from a terminal: its job API, and the nowcast server on it."""

import asyncio
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import stamina
import typer
from aiohttp import ClientError
from ray.exceptions import AuthenticationError, RayError
from ray.job_submission import JobStatus, JobSubmissionClient

from trainer_worker.errors import CommandFailed
from trainer_worker.training.reach import reach

READY_S: Final = 60.0  # for a cluster that has only just come up to be ready for jobs
CHATTY: Final = ("ray", "ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk", "stamina")
WAY_OUT: Final = "give --address, e.g. http://HEAD:8265 (ray dashboard CLUSTER.yaml, or kubectl port-forward, brings the port here)"
AUTHENTICATE: Final = (
    "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to its token unless ~/.ray/auth_token holds it; a cluster that shall take none "
    "is started with RAY_AUTH_MODE=disabled"
)


def connect(address: str | None) -> JobSubmissionClient:
    """The job API of a cluster: at http://HEAD:8265, HEAD:6379 or auto; None for that of the environment, or of this machine.
    Raises CommandFailed: nothing answers there, or a token is missing.
    """
    for name in CHATTY:  # a terminal wants the answer, not how it came about
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS") if address else ():  # Ray's client would prefer these to the argument
        os.environ.pop(name, None)
    where = address or "this machine"
    try:
        reach(where)
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise CommandFailed(f"the cluster at {where} takes its own tokens only: {AUTHENTICATE}") from error
    except (RuntimeError, ValueError, OSError, RayError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CommandFailed(f"no Ray cluster answers at {where}: {first}; {WAY_OUT}") from error


@contextmanager
def cluster_errors() -> Iterator[None]:
    """What Ray's client raises, in one sentence. Raises `CommandFailed`: in place of it."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if "already exists" in text:
            raise CommandFailed("the cluster knows a submission of this name already: take another --name") from error
        raise CommandFailed(f"the cluster refuses: {text.strip().splitlines()[0]}") from error
    except OSError as error:
        raise CommandFailed(f"the connection to the cluster is lost: {error}") from error


def send(client: JobSubmissionClient, job: dict[str, Any]) -> None:
    """Upload and start a job of `submit_job`'s arguments. Raises CommandFailed: the cluster refuses."""
    job["runtime_env"]["env_vars"].setdefault("NOWCAST_LINK", f"{client.get_address()}/#/jobs/{job['submission_id']}")
    with cluster_errors():
        for attempt in stamina.retry_context(_not_ready, attempts=None, timeout=READY_S, wait_initial=1.0):
            with attempt:
                client.submit_job(**job)


def _not_ready(error: Exception) -> bool:
    return isinstance(error, RuntimeError) and "try again later" in str(error)


def follow(client: JobSubmissionClient, submission: str) -> str:
    """Print a job's output until its end; why it did not succeed, "" if it did. Raises CommandFailed: the connection is lost."""

    async def tail() -> None:
        with suppress(RuntimeError, ClientError):  # the connection is lost; whether the job has ended is asked below
            async for lines in client.tail_job_logs(submission):
                typer.echo(lines, nl=False)

    with cluster_errors():
        if client.get_job_status(submission).is_terminal():
            typer.echo(client.get_job_logs(submission), nl=False)
        else:
            asyncio.run(tail())
        details = client.get_job_info(submission)
    if not details.status.is_terminal():
        raise CommandFailed(f"the connection to the log is lost, the job goes on: ray job logs --follow {submission}")
    if details.status == JobStatus.SUCCEEDED:
        return ""
    return f"{details.status.value.lower()}: {(details.message or '').partition(', last available logs')[0]}"


def find_server(client: JobSubmissionClient, server: str) -> str | None:
    """The address of the server that a job shall call, as the command names it: a URL, `serve:NAME`, or embedded, which is None.
    Raises CommandFailed: it is none of them, or there is no such application, or it does not run.
    """
    if server == "embedded" or server.startswith(("http://", "https://")):
        return None if server == "embedded" else server
    scheme, _, name = server.partition(":")
    if scheme != "serve":
        raise CommandFailed(f"--server {server!r}: give a URL, serve:NAME, or embedded")
    with cluster_errors():
        response = client._do_request("GET", "/api/serve/applications/")  # noqa: SLF001 -- as Ray's own Serve client does
        if response.status_code != 200:
            raise CommandFailed(f"the cluster does not say what it serves (status {response.status_code})")
        return server_url(name, response.json())


def server_url(name: str, details: dict[str, Any]) -> str:
    """The address at which workers can call an application of Ray Serve, by what the cluster says of them.
    Raises CommandFailed: there is no such application, or it does not run.
    """
    applications, http = details.get("applications", {}), details["http_options"]
    if name not in applications:
        there = f"no Serve application {name!r} on this cluster (there are: {', '.join(applications) or 'none'})"
        raise CommandFailed(f"{there}; start one with nowcast-server serve-on-ray, or give --server URL")
    application = applications[name]
    if application["status"] != "RUNNING":
        why = application.get("message") or "wait for it"
        raise CommandFailed(f"the Serve application {name!r} is {application['status']}: {why}")
    host = http["host"]
    if host in ("0.0.0.0", "::"):  # noqa: S104 -- proxies that listen on all addresses are called by that of their node
        proxies = [each["node_ip"] for each in details.get("proxies", {}).values() if each and each.get("status") == "HEALTHY"]
        if not proxies:
            raise CommandFailed("no healthy Serve proxy on this cluster")
        host = proxies[0]
    scheme = "https" if http.get("ssl_certfile") else "http"
    return f"{scheme}://{host}:{http['port']}{application['route_prefix'].rstrip('/')}"
