"""Where the nowcast server of a cluster is: by URL, or by the name of its Serve application."""

import ipaddress
from typing import Any, Final

from trainer_worker.cluster.errors import ClusterError

BY_NAME: Final = "serve:"


def server_url(server: str, details: dict[str, Any]) -> str:
    """The address workers on the cluster can call.

    Args:
        server: a URL, which is taken as it is, or `serve:NAME`.
        details: what the cluster says of Ray Serve (`connection.serve_details`).

    Raises:
        ClusterError: there is no such application, or it does not run.
    """
    if not server.startswith(BY_NAME):
        return server
    name = server.removeprefix(BY_NAME)
    applications = details.get("applications", {})
    if name not in applications:
        there = ", ".join(applications) or "none"
        raise ClusterError(
            f"no Serve application {name!r} on this cluster (there are: {there}); start one with "
            "nowcast-server serve-on-ray, or give --server URL"
        )
    application = applications[name]
    if application["status"] != "RUNNING":
        raise ClusterError(
            f"the Serve application {name!r} is {application['status']}: {application.get('message') or 'wait for it'}"
        )
    http = details["http_options"]
    scheme = "https" if http.get("ssl_certfile") else "http"
    return f"{scheme}://{_host(http['host'], details)}:{http['port']}{application['route_prefix'].rstrip('/')}"


def _host(listens_on: str, details: dict[str, Any]) -> str:
    """Proxies that listen on all addresses are called by that of their node."""
    if not _is_any(listens_on):
        return listens_on
    proxies = [each for each in details.get("proxies", {}).values() if each and each.get("status") == "HEALTHY"]
    if not proxies:
        raise ClusterError("no healthy Serve proxy on this cluster")
    return str(proxies[0]["node_ip"])


def _is_any(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
