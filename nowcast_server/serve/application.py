"""The Serve application: what a Serve config names as `import_path: nowcast_server.serve.application:application`."""

from typing import Any, Final

from ray import serve
from ray.serve import Application

from nowcast_server.serve.replica import Replica
from nowcast_server.settings import Settings

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
    """One nowcast server, in as many replicas as the deployment's options say.

    Args:
        args: `Settings` by name, as in a config's `args`; what they leave out comes from `NOWCAST_*` variables of the replica.
            Host and port are the proxy's business.

    Raises:
        pydantic.ValidationError: they are not valid.
    """
    Settings(**args)
    return deployment.bind(args)


def autoscaling(
    smallest: int, largest: int, *, at_hand: float = 4.0, upscale_delay_s: float = 30, downscale_delay_s: float = 600
) -> dict[str, Any]:
    """Scale on forecasts that wait or run, not on open connections: uploads are cheap, the device is not.

    A replica is added when, as a mean over 30 s and for `upscale_delay_s`, more than `at_hand` forecasts have waited or run on
    each; one is taken away after `downscale_delay_s`, as a job that moves has to send its context again.
    """
    return {
        "min_replicas": smallest,
        "max_replicas": largest,
        "target_ongoing_requests": at_hand,
        "upscale_delay_s": upscale_delay_s,
        "downscale_delay_s": downscale_delay_s,
        "policy": {"policy_function": "nowcast_server.serve.scaling:forecasts_at_hand"},
    }
