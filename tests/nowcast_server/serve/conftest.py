"""A nowcast server on Ray Serve, in two replicas."""

import os
import socket
from collections.abc import Iterator

import httpx2
import pytest

PATIENCE = ("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S")
os.environ.update(dict.fromkeys(PATIENCE, "60"))  # read by Ray's processes, which the session's cluster starts later
TENANTS = {"a": "token-of-tenant-a-0000", "b": "token-of-tenant-b-0000", "operator": "token-of-operator-0000"}


@pytest.fixture(scope="module")
def serve_url(ray_cluster: None) -> Iterator[str]:
    """The server's address; two replicas, three tenants. For one module: its replicas hold CPUs that training waits for."""
    from ray import serve

    from nowcast_server.serve.application import Replicas, start

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {"port": port, "memory": "256MiB", "tokens": ",".join(f"{name}:{token}" for name, token in TENANTS.items())}
    yield start(settings, replicas=Replicas(2, 2, cpus=0.1))
    serve.shutdown()


@pytest.fixture
def client(serve_url: str) -> Iterator[httpx2.Client]:
    """Calls as tenant a."""
    with httpx2.Client(base_url=serve_url, headers={"authorization": f"Bearer {TENANTS['a']}"}, timeout=60) as calls:
        yield calls
