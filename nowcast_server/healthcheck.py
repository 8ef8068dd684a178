"""`python -m nowcast_server.healthcheck`: is the server in this container ready?

It reads the same `NOWCAST_*` variables as the server. Configure a container by variables, then, not by options.
"""

import http.client
import ipaddress
import ssl
import sys
from typing import Final

from nowcast_server.settings import Settings

TIMEOUT_S: Final = 3.0


def check(settings: Settings, path: str = "/readyz") -> str | None:
    """Ask the server for its health; None if it is well, else what is wrong.

    Args:
        settings: of the server: its address and certificates.
        path: `/readyz`, or `/livez`.
    """
    connection = _connection(settings)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return f"no answer on port {settings.port}: {error}"
    finally:
        connection.close()
    return None if response.status == http.HTTPStatus.OK else f"{path} answered {response.status}: {body}"


def _connection(settings: Settings) -> http.client.HTTPConnection:
    host = _reachable(settings.host)
    if settings.tls_cert is None:
        return http.client.HTTPConnection(host, settings.port, timeout=TIMEOUT_S)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # this is our own server, and no secret is sent
    if settings.tls_ca is not None:  # it asks for a certificate; its own will do if the same authority signed it
        context.load_cert_chain(settings.tls_cert, settings.tls_key)
    return http.client.HTTPSConnection(host, settings.port, timeout=TIMEOUT_S, context=context)


def _reachable(host: str) -> str:
    """The address to call a server at that listens on `host`."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if not address.is_unspecified:
        return host
    return "127.0.0.1" if address.version == 4 else "::1"


if __name__ == "__main__":
    problem = check(Settings(), *sys.argv[1:2])
    if problem is not None:
        sys.exit(problem)
