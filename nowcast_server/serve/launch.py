"""Start the application on a Ray cluster, and wait until it is stopped."""

import os
import threading
from dataclasses import dataclass, field
from typing import Any

import ray
from ray import serve

from nowcast_server.logs import configure_logging, log
from nowcast_server.running import KEEP_ALIVE_S
from nowcast_server.serve.application import autoscaling, deployment
from nowcast_server.settings import Settings
from nowcast_server.tokens import Tokens, check_exposure

PATIENCE = {
    # the proxy misses Serve's own limits (5 s, 10 s) on a machine with every core taken, and is killed for it
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
    # Ray has its workers yield to everything else on the machine; ours are what it is for
    "RAY_worker_niceness": "0",
}
ATTEMPTS = 3
LOCAL_OBJECT_STORE_BYTES = 200 * 1024**2
"""Bodies pass from proxy to replica in the calls themselves; nothing of ours lives in the object store."""


@dataclass(frozen=True)
class Replicas:
    """How many replicas, and what each may use."""

    smallest: int = 1
    largest: int = 1  # between these they scale with the forecasts at hand
    cpus: float = 1.0  # of each; also torch's threads
    gpus: float = 0.0  # of each; 0.5 puts two on a GPU
    scaling: dict[str, float] = field(default_factory=dict)  # options of `autoscaling`

    def options(self) -> dict[str, Any]:
        """As Serve takes them."""
        actor = {"num_cpus": self.cpus, "num_gpus": self.gpus}
        if self.largest > self.smallest:
            return {"ray_actor_options": actor, "autoscaling_config": autoscaling(self.smallest, self.largest, **self.scaling)}
        return {"ray_actor_options": actor, "num_replicas": self.smallest}


def start(
    settings: dict[str, Any], *, replicas: Replicas, name: str = "nowcast", prefix: str = "/", tls: tuple[str, str] | None = None
) -> str:
    """Deploy on the connected cluster and wait until all replicas are ready; the server's address as seen from here.

    Args:
        settings: `Settings` by name; `host` and `port` become the proxies'.
        replicas: how many and how large.
        name: of the Serve application; `nowcast submit` finds the server by it.
        prefix: of all paths. Servers with different checkpoints can share a cluster, each under a prefix.
        tls: files of a certificate and its key. Not mutual: Serve's proxy asks no client for a certificate.

    Raises:
        ValueError, OSError: the settings cannot be served.
        RuntimeError: the replicas do not start; Ray's logs say why.
    """
    known = Settings(**settings)
    tokens = Tokens.load(known)
    check_exposure(known, tokens)
    http: dict[str, Any] = {"host": known.host, "port": known.port, "keep_alive_timeout_s": KEEP_ALIVE_S}
    if tls is not None:
        http |= dict(zip(("ssl_certfile", "ssl_keyfile"), tls, strict=True))
    serve.start(proxy_location="EveryNode", http_options=http)
    args = {key: value for key, value in settings.items() if key not in ("host", "port", "tokens", "token_file")}
    if tokens.tenants:  # only their hashes travel
        args["tokens"] = ",".join(f"{tenant}:sha256:{digest.hex()}" for digest, tenant in tokens.tenants)
    if not replicas.gpus:
        args.setdefault("threads", max(1, int(replicas.cpus)))
    serve.run(deployment.options(**replicas.options()).bind(args), name=name, route_prefix=prefix)
    return f"{'https' if tls else 'http'}://{known.host}:{known.port}{prefix.rstrip('/')}"


def _start_cluster() -> None:
    """Start Ray on this machine; again if it was too slow for itself: its own processes have a fixed 15 s to come up."""
    for key, value in PATIENCE.items():
        os.environ.setdefault(key, value)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            # "local": not whatever cluster happens to run on this machine
            ray.init(address="local", object_store_memory=LOCAL_OBJECT_STORE_BYTES, include_dashboard=True, log_to_driver=False)
        except Exception as error:
            if attempt == ATTEMPTS or "timed out during startup" not in str(error):
                raise
            log.warning("Ray did not start in time, trying again")
            ray.shutdown()
        else:
            return


def serve_on_ray(settings: dict[str, Any], *, address: str | None, replicas: Replicas, stay: bool, name: str, **where: Any) -> None:
    """`nowcast-server serve-on-ray`: join a cluster, or start one here, and deploy.

    Without an address the cluster is this machine, for as long as this process lives. To stay is to wait for a signal, and to take
    the server down then. All else is as for `start`.

    Raises:
        ConnectionError: there is no cluster at the address.
        ValueError, OSError, RuntimeError: see `start`.
    """
    known = Settings(**settings)
    configure_logging(level=known.log_level, style=known.log_format)
    if address is None:
        _start_cluster()
    else:
        ray.init(address=address, log_to_driver=False)
    url = start(settings, replicas=replicas, name=name, **where)
    log.info("ready", extra={"url": url, "replicas": replicas.smallest, "cluster": address or "local"})
    if stay:
        try:
            threading.Event().wait()
        finally:
            serve.delete(name)
