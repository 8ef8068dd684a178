"""The Serve application, named `nowcast_server.serve.application:application` in Serve configs, and its start on a cluster."""

import os
import threading
from dataclasses import dataclass
from typing import Any, Final

import ray
import stamina
from ray import serve
from ray.serve import Application

from nowcast_server.logs import configure_logging, log
from nowcast_server.running import KEEP_ALIVE_S
from nowcast_server.serve.replica import Replica
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
LOCAL_OBJECT_STORE_BYTES = 200 * 1024**2  # bodies pass from proxy to replica in the calls themselves
DEPLOYMENT: Final = "NowcastServer"
ROUTER: Final[dict[str, Any]] = {
    "request_router_class": "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter",
    # no fallback: a call that went to another replica would find the job unknown there, and move it for a moment's load
    "request_router_kwargs": {"num_fallback_replicas": 0},
}

deployment = serve.deployment(
    name=DEPLOYMENT,
    request_router_config=ROUTER,
    max_ongoing_requests=1000,  # the app has limits of its own, and says `busy` where Serve would say nothing
    health_check_period_s=10,
    health_check_timeout_s=60,  # on a machine with every core taken, an answer takes seconds
    graceful_shutdown_wait_loop_s=1,
    graceful_shutdown_timeout_s=300,  # a forecast of a large model in flight
)(serve.ingress()(Replica))


def application(args: dict[str, Any]) -> Application:
    """One nowcast server for a Serve config, whose `args` are `Settings` by name; host and port are the proxy's business."""
    Settings(**args)
    return deployment.bind(args)


@dataclass(frozen=True)
class Replicas:
    """How many replicas, scaled on forecasts that wait or run (uploads are cheap, the device is not), and what each may use."""

    smallest: int = 1
    largest: int = 1
    cpus: float = 1.0  # of each; also torch's threads
    gpus: float = 0.0  # of each; 0.5 puts two on a GPU
    at_hand: float = 4.0  # forecasts on each, as a mean over 30 s, beyond which one is added,
    upscale_delay_s: float = 30  # if for so long;
    downscale_delay_s: float = 600  # and one is taken away: a job that moves has to send its context again

    def options(self) -> dict[str, Any]:
        actor = {"num_cpus": self.cpus, "num_gpus": self.gpus}
        if self.largest == self.smallest:
            return {"ray_actor_options": actor, "num_replicas": self.smallest}
        scaling = {
            "min_replicas": self.smallest,
            "max_replicas": self.largest,
            "target_ongoing_requests": self.at_hand,
            "upscale_delay_s": self.upscale_delay_s,
            "downscale_delay_s": self.downscale_delay_s,
            "policy": {"policy_function": "nowcast_server.serve.scaling:forecasts_at_hand"},
        }
        return {"ray_actor_options": actor, "autoscaling_config": scaling}


def start(settings: dict[str, Any], *, replicas: Replicas, name: str = "nowcast", prefix: str = "/") -> str:
    """Deploy on the connected cluster and wait until all replicas are ready; the server's address as seen from here.

    `host`, `port` and certificate of the settings become the proxies'. `nowcast submit` finds the server by its name; several on a
    cluster have a prefix of all paths each. ValueError or OSError if the settings cannot be served, RuntimeError if replicas do not
    start; Ray's logs say why.
    """
    known = Settings(**settings)
    tokens = Tokens.load(known)
    check_exposure(known, tokens)
    if known.tls_ca is not None:
        raise ValueError("Serve's proxies ask no client for a certificate, as NOWCAST_TLS_CA wants: use nowcast-server run")
    if known.tls_key is not None and known.tls_cert is None:
        raise ValueError("--tls-key needs a certificate, --tls-cert")
    http: dict[str, Any] = {"host": known.host, "port": known.port, "keep_alive_timeout_s": KEEP_ALIVE_S}
    if known.tls_cert is not None:
        http |= {"ssl_certfile": str(known.tls_cert), "ssl_keyfile": str(known.tls_key or known.tls_cert)}
    serve.start(proxy_location="EveryNode", http_options=http)
    of_proxies = ("host", "port", "tls_cert", "tls_key", "tokens", "token_file")
    args = {key: value for key, value in settings.items() if key not in of_proxies}
    if tokens.tenants:  # only their hashes travel
        args["tokens"] = ",".join(f"{tenant}:sha256:{digest.hex()}" for digest, tenant in tokens.tenants)
    if not replicas.gpus:
        args.setdefault("threads", max(1, int(replicas.cpus)))
    serve.run(deployment.options(**replicas.options()).bind(args), name=name, route_prefix=prefix)
    return f"{'https' if known.tls_cert else 'http'}://{known.host}:{known.port}{prefix.rstrip('/')}"


@stamina.retry(on=lambda error: "timed out during startup" in str(error), attempts=ATTEMPTS, timeout=None)
def _start_cluster() -> None:
    """Start Ray on this machine; again if it was too slow for itself: its own processes have a fixed 15 s to come up."""
    for key, value in PATIENCE.items():
        os.environ.setdefault(key, value)
    ray.shutdown()  # what is left of an attempt before
    # "local": not whatever cluster happens to run on this machine
    ray.init(address="local", object_store_memory=LOCAL_OBJECT_STORE_BYTES, include_dashboard=True, log_to_driver=False)


def serve_on_ray(settings: dict[str, Any], *, address: str | None, replicas: Replicas, stay: bool, name: str, **where: Any) -> None:
    """`nowcast-server serve-on-ray`: `start` on the cluster at an address (ConnectionError if there is none), else that of this
    process, else one on this machine, which ends with it. To stay is to wait for a signal, and to take the server down then.
    """
    known = Settings(**settings)
    configure_logging(level=known.log_level, style=known.log_format)
    if address is not None:
        ray.init(address=address, log_to_driver=False)
    elif not ray.is_initialized():
        _start_cluster()
    url = start(settings, replicas=replicas, name=name, **where)
    log.info("ready", extra={"url": url, "replicas": replicas.smallest, "cluster": address or "local"})
    if stay:
        try:
            threading.Event().wait()
        finally:
            serve.delete(name)
