"""How a worker, or a command, reaches a nowcast server: as whom, whom it trusts, and past which proxy."""

import os
import ssl
from collections.abc import Mapping
from ipaddress import ip_address
from types import MappingProxyType

import httpx2

from trainer_worker.errors import BadArgument


def http_client(url: str, *, token: str | None, headers: Mapping[str, str] = MappingProxyType({})) -> httpx2.Client:
    """A client for the server at `url`, to be closed.

    Args:
        url: `http://` or `https://`.
        token: bearer token, as read from a file: white space around it is no part of it; none if empty.
        headers: of every call.

    Raises:
        BadArgument: the token cannot be one, or a proxy that the environment names cannot be used.
        OSError: a file that NOWCAST_TLS_* names cannot be read, or is no certificate.
        httpx2.InvalidURL: the address is none.
    """
    token = (token or "").strip()
    if token and not (token.isascii() and token.isprintable()):
        raise BadArgument("token", "has a character that no token has")
    given = {**headers, "authorization": f"Bearer {token}"} if token else dict(headers)
    try:
        return httpx2.Client(base_url=url, headers=given, verify=_verification(), trust_env=trusts_environment(url))
    except ImportError as error:
        detail = "the environment names a SOCKS proxy (ALL_PROXY): pip install 'httpx2[socks]', or unset it"
        raise BadArgument("server", detail) from error
    except ValueError as error:
        raise BadArgument("server", f"a proxy of the environment (ALL_PROXY, HTTPS_PROXY) cannot be used: {error}") from error


def trusts_environment(url: str) -> bool:
    """What httpx takes as `trust_env`: not for this machine's own servers, of which a proxy knows nothing."""
    host = httpx2.URL(url).host
    try:
        return not ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"


def _verification() -> ssl.SSLContext | bool:
    """What httpx takes as `verify`: the authorities it comes with, or those of the files `NOWCAST_TLS_CA`, `NOWCAST_TLS_CERT` and
    `NOWCAST_TLS_KEY`, PEM.
    """
    authority, certificate = os.environ.get("NOWCAST_TLS_CA"), os.environ.get("NOWCAST_TLS_CERT")
    if not authority and not certificate:
        return True
    context = ssl.create_default_context(cafile=authority)
    if certificate:
        context.load_cert_chain(certificate, os.environ.get("NOWCAST_TLS_KEY"))
    return context
