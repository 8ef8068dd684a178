"""`python -m nowcast_server.healthcheck`: is the server in this container ready? It reads the same `NOWCAST_*` variables."""

import ssl
import sys
from typing import Final

import httpx2

from nowcast_server.settings import Settings

TIMEOUT_S: Final = 3.0


def check(settings: Settings, path: str = "/readyz") -> str | None:
    """Ask the server of these settings for `/readyz`, or `/livez`; None if it is well, else what is wrong."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # this is our own server, and no secret is sent
    if settings.tls_ca is not None and settings.tls_cert is not None:
        # it asks for a certificate; its own will do if the same authority signed it
        context.load_cert_chain(settings.tls_cert, settings.tls_key)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104 -- what it listens on
    where = f"[{host}]" if ":" in host else host
    url = f"{'http' if settings.tls_cert is None else 'https'}://{where}:{settings.port}{path}"
    try:
        transport = httpx2.HTTPTransport(verify=context, uds=None if settings.uds is None else str(settings.uds))
        with httpx2.Client(transport=transport, timeout=TIMEOUT_S) as client:
            response = client.get(url)
    except httpx2.TransportError as error:
        return f"no answer on {settings.uds or f'port {settings.port}'}: {error}"
    return None if response.is_success else f"{path} answered {response.status_code}: {response.text}"


if __name__ == "__main__":
    problem = check(Settings(), *sys.argv[1:2])
    if problem is not None:
        sys.exit(problem)
