"""A Ray cluster's job API, as seen from a terminal."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Final
from urllib.parse import urlsplit

from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from trainer_worker.cluster.errors import ClusterError

REACH_S: Final = 5.0
CHATTY: Final = ("ray", "ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk", "stamina")
VARIABLES: Final = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
WAY_OUT: Final = "give --address, e.g. http://HEAD:8265 (ray dashboard CLUSTER.yaml, or kubectl port-forward, brings the port here)"

AUTHENTICATE: Final = (
    "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to its token unless ~/.ray/auth_token holds it; a cluster that shall take none "
    "is started with RAY_AUTH_MODE=disabled"
)


def connect(address: str | None) -> JobSubmissionClient:
    """The job API of a cluster.

    Args:
        address: http://HEAD:8265, HEAD:6379 or auto; None takes that of the environment, or of this machine's cluster.

    Raises:
        ClusterError: nothing answers there, or a token is missing.
    """
    for name in CHATTY:  # a terminal wants the answer, not how it came about
        logging.getLogger(name).setLevel(logging.ERROR)
    if address is not None and address.startswith(("http://", "https://")):
        _probe(address)
    try:
        with _without_variables() if address else nullcontext():
            return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise ClusterError(f"the cluster at {address or 'this machine'} takes its own tokens only: {AUTHENTICATE}") from error
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ClusterError(f"no Ray cluster answers at {address or 'this machine'}: {first}; {WAY_OUT}") from error


def _probe(address: str) -> None:
    """Ray's client would wait for minutes where packets are dropped."""
    parts = urlsplit(address)
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname or "", port), timeout=REACH_S).close()
    except (OSError, ValueError) as error:
        raise ClusterError(f"no Ray cluster answers at {address}: {error}; {WAY_OUT}") from error


@contextmanager
def _without_variables() -> Iterator[None]:
    """In Ray's client the environment overrides the argument; on a command line it is the other way round."""
    held = {name: os.environ.pop(name) for name in VARIABLES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(held)


@contextmanager
def cluster_errors(submission: str | None = None) -> Iterator[None]:
    """What Ray's client raises, in one sentence.

    Raises:
        ClusterError: in place of it.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if submission is not None and ("does not exist" in text or "404" in text):
            raise ClusterError(f"the cluster knows no submission {submission!r}; `ray job list` lists them") from error
        if "already exists" in text:
            raise ClusterError("the cluster knows a submission of this name already: take another --name") from error
        raise ClusterError(f"the cluster refuses: {text.strip().splitlines()[0]}") from error
    except OSError as error:
        raise ClusterError(f"the connection to the cluster is lost: {error}") from error


def serve_details(client: JobSubmissionClient) -> dict[str, Any]:
    """What the cluster says of Ray Serve on it."""
    with cluster_errors():
        response = client._do_request("GET", "/api/serve/applications/")  # noqa: SLF001 -- as Ray's own Serve client does
        if response.status_code != 200:
            raise ClusterError(f"the cluster does not say what it serves (status {response.status_code})")
        details: dict[str, Any] = response.json()
    return details
