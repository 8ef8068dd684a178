"""HTTPS, and client certificates."""

import ssl
from typing import Any

from nowcast_server.settings import Settings


def tls_options(settings: Settings) -> dict[str, Any]:
    """HTTPS by uvicorn's own options.

    Raises:
        ValueError: a key or an authority without a certificate: the server would listen in plain text. Or no certificate at all.
        FileNotFoundError: one of the files is not there.
    """
    files = [path for path in (settings.tls_cert, settings.tls_key, settings.tls_ca) if path is not None]
    if not files:
        return {}
    if settings.tls_cert is None:
        raise ValueError("--tls-key and --tls-ca need a certificate, --tls-cert")
    for path in files:
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}")
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(settings.tls_cert, settings.tls_key)
    except ssl.SSLError as error:
        key = f"in {settings.tls_key}" if settings.tls_key else "beside it; a file of its own is --tls-key"
        raise ValueError(f"{settings.tls_cert} is no PEM certificate, or its key is not {key} ({error})") from error
    required = {"ssl_ca_certs": str(settings.tls_ca), "ssl_cert_reqs": ssl.CERT_REQUIRED} if settings.tls_ca else {}
    return {"ssl_certfile": settings.tls_cert, "ssl_keyfile": settings.tls_key, **required}
