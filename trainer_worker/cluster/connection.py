"""A Ray cluster as seen from a terminal: its job API, and the nowcast server on it."""

import asyncio
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import urlsplit

import stamina
import typer
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from trainer_worker.cluster.submission import BY_NAME, Submission
from trainer_worker.errors import CommandFailed

REACH_S: Final = 5.0
READY_S: Final = 60.0
"""For a cluster that has only just come up to be ready for jobs."""
CHATTY: Final = ("ray", "ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk", "stamina")
VARIABLES: Final = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
WAY_OUT: Final = "give --address, e.g. http://HEAD:8265 (ray dashboard CLUSTER.yaml, or kubectl port-forward, brings the port here)"
AUTHENTICATE: Final = (
    "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to its token unless ~/.ray/auth_token holds it; a cluster that shall take none "
    "is started with RAY_AUTH_MODE=disabled"
)


def connect(address: str | None) -> JobSubmissionClient:
    """The job API of a cluster: at http://HEAD:8265, HEAD:6379 or auto; None for that of the environment, or of this machine.

    Raises:
        CommandFailed: nothing answers there, or a token is missing.
    """
    for name in CHATTY:  # a terminal wants the answer, not how it came about
        logging.getLogger(name).setLevel(logging.ERROR)
    if address is not None and address.startswith(("http://", "https://")):
        _probe(address)
    try:
        with _without_variables() if address else nullcontext():
            return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise CommandFailed(f"the cluster at {address or 'this machine'} takes its own tokens only: {AUTHENTICATE}") from error
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CommandFailed(f"no Ray cluster answers at {address or 'this machine'}: {first}; {WAY_OUT}") from error


def _probe(address: str) -> None:
    """Ray's client would wait for minutes where packets are dropped."""
    parts = urlsplit(address)
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname or "", port), timeout=REACH_S).close()
    except (OSError, ValueError) as error:
        raise CommandFailed(f"no Ray cluster answers at {address}: {error}; {WAY_OUT}") from error


@contextmanager
def _without_variables() -> Iterator[None]:
    """In Ray's client the environment overrides the argument; on a command line it is the other way round."""
    held = {name: os.environ.pop(name) for name in VARIABLES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(held)


@contextmanager
def cluster_errors() -> Iterator[None]:
    """What Ray's client raises, in one sentence.

    Raises:
        CommandFailed: in place of it.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if "already exists" in text:
            raise CommandFailed("the cluster knows a submission of this name already: take another --name") from error
        raise CommandFailed(f"the cluster refuses: {text.strip().splitlines()[0]}") from error
    except OSError as error:
        raise CommandFailed(f"the connection to the cluster is lost: {error}") from error


def send(client: JobSubmissionClient, submission: Submission) -> None:
    """Upload and start; a cluster that has only just come up gets `READY_S` to be ready for jobs.

    Raises:
        CommandFailed: the cluster refuses.
    """
    link = {"NOWCAST_LINK": f"{client.get_address()}/#/jobs/{submission.id}"}
    with cluster_errors():
        for attempt in stamina.retry_context(on=_not_yet, attempts=None, timeout=READY_S, wait_initial=1.0, wait_max=5.0):
            with attempt:
                client.submit_job(
                    entrypoint=submission.entrypoint,
                    submission_id=submission.id,
                    runtime_env=submission.runtime_env | {"env_vars": {**link, **submission.environment}},
                    metadata=dict(submission.metadata),
                )


def _not_yet(error: Exception) -> bool:
    return isinstance(error, RuntimeError) and "try again later" in str(error)


def follow(client: JobSubmissionClient, submission: str) -> str:
    """Print a job's output until it has ended; why it did not succeed, "" if it did.

    Raises:
        CommandFailed: the cluster is gone.
    """

    async def tail() -> None:
        async for lines in client.tail_job_logs(submission):
            typer.echo(lines, nl=False)

    with cluster_errors():
        if client.get_job_status(submission).is_terminal():
            typer.echo(client.get_job_logs(submission), nl=False)
        else:
            asyncio.run(tail())
        details = client.get_job_info(submission)
    if details.status == JobStatus.SUCCEEDED:
        return ""
    return f"{details.status.value.lower()}: {(details.message or '').partition(', last available logs')[0]}"


def find_server(client: JobSubmissionClient, server: str) -> str:
    """The address of a server that is named `serve:NAME`."""
    with cluster_errors():
        response = client._do_request("GET", "/api/serve/applications/")  # noqa: SLF001 -- as Ray's own Serve client does
        if response.status_code != 200:
            raise CommandFailed(f"the cluster does not say what it serves (status {response.status_code})")
        return server_url(server, response.json())


def server_url(server: str, details: dict[str, Any]) -> str:
    """The address at which workers can call the server `serve:NAME`, by what the cluster says of Ray Serve.

    Raises:
        CommandFailed: there is no such application, or it does not run.
    """
    name = server.removeprefix(BY_NAME)
    applications = details.get("applications", {})
    if name not in applications:
        there = ", ".join(applications) or "none"
        raise CommandFailed(
            f"no Serve application {name!r} on this cluster (there are: {there}); start one with "
            "nowcast-server serve-on-ray, or give --server URL"
        )
    application = applications[name]
    if application["status"] != "RUNNING":
        raise CommandFailed(
            f"the Serve application {name!r} is {application['status']}: {application.get('message') or 'wait for it'}"
        )
    http = details["http_options"]
    scheme = "https" if http.get("ssl_certfile") else "http"
    return f"{scheme}://{_host(http['host'], details)}:{http['port']}{application['route_prefix'].rstrip('/')}"


def _host(listens_on: str, details: dict[str, Any]) -> str:
    """Proxies that listen on all addresses are called by that of their node."""
    try:
        if not ip_address(listens_on).is_unspecified:
            return listens_on
    except ValueError:
        return listens_on
    proxies = [each for each in details.get("proxies", {}).values() if each and each.get("status") == "HEALTHY"]
    if not proxies:
        raise CommandFailed("no healthy Serve proxy on this cluster")
    return str(proxies[0]["node_ip"])
