"""The HTTP client for a nowcast server: token, certificates, proxy; and what answers mean that are no nowcast server's."""

import logging
import os
import ssl
from collections.abc import Mapping
from ipaddress import ip_address
from types import MappingProxyType
from typing import Final

import httpx2

from protos.errors import BadRequest, MethodNotAllowed, NotFound, NowcastError, TooLarge, Unauthorized, Unavailable
from trainer_worker.errors import BadArgument

if (_calls := logging.getLogger("httpx2")).level == logging.NOTSET:
    _calls.setLevel(logging.WARNING)  # a line for each request would hide what a run tells

_LOGIN: Final = (Unauthorized, "{url} asks for a login that is no nowcast server's (status {status}): a proxy stands before it")
_MEANINGS: Final[dict[int, tuple[type[NowcastError], str]]] = {
    401: _LOGIN,
    403: _LOGIN,
    404: (NotFound, "{url} is not there: is this a nowcast server, and is the path before /v1 right?"),
    405: (MethodNotAllowed, "{url} does not take this call: another service, not a nowcast server"),
    407: (Unauthorized, "the proxy asks for a login: put it into HTTPS_PROXY as http://USER:PASSWORD@HOST"),
    413: (TooLarge, "a proxy before {url} takes no body of this size: raise its limit (nginx: client_max_body_size)"),
}
"""Of an answer that is not of the protocol, by status."""


def http_client(url: str, *, token: str | None, headers: Mapping[str, str] = MappingProxyType({})) -> httpx2.Client:
    """A client for the server at `url`, to be closed. White space around the bearer token, as read from a file, is no part of it.

    Raises:
        BadArgument: the token cannot be one, or a proxy that the environment names cannot be used.
        OSError: a file that NOWCAST_SERVER_CA or NOWCAST_CLIENT_* names cannot be read, or is no certificate.
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
    """What httpx takes as `verify`: the authorities it comes with, or that of the file `NOWCAST_SERVER_CA`; and the certificate to
    show, `NOWCAST_CLIENT_CERT` with its key `NOWCAST_CLIENT_KEY`. All PEM.
    """
    authority, certificate = os.environ.get("NOWCAST_SERVER_CA"), os.environ.get("NOWCAST_CLIENT_CERT")
    if not authority and not certificate:
        return True
    context = ssl.create_default_context(cafile=authority)
    if certificate:
        context.load_cert_chain(certificate, os.environ.get("NOWCAST_CLIENT_KEY"))
    return context


def stranger_error(response: httpx2.Response) -> NowcastError:
    """Name what a failure means that is not of the protocol: a proxy's, a login page's, another service's."""
    status, url = response.status_code, str(response.request.url)
    if status >= 500:
        return Unavailable(f"{url} answers {status}; a proxy that does not reach its server?")
    if 300 <= status < 400:
        place = response.headers.get("location", "another address")
        return BadRequest(f"{url} redirects to {place} (status {status}): give that server's address", field="server")
    kind, meaning = _MEANINGS.get(status, (BadRequest, "{url} answers {status}, as no nowcast server does"))
    return kind(meaning.format(url=url, status=status), field="server")


def unreached(error: httpx2.ConnectError) -> NowcastError:
    """Name why no connection came about."""
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        detail = f"the server's certificate is not trusted: name its authority in NOWCAST_SERVER_CA ({error})"
        return BadRequest(detail, field="server")
    if "[SSL" in str(error):
        return BadRequest(f"no HTTPS is spoken at this address: is it http://… ? ({error})", field="server")
    return Unavailable(f"no server answers at this address ({error}); `nowcast-server run` starts one")


def stranger_success(response: httpx2.Response, body: bytes) -> NowcastError:
    """Name an answer of success that is none of a nowcast server's."""
    url = response.request.url
    if "html" in response.headers.get("content-type", "") or body.lstrip()[:1] == b"<":
        return BadRequest(f"{url} answers with a web page, perhaps a login: give the nowcast server's own address", field="server")
    return BadRequest(f"{url} does not answer as a nowcast server does", field="server")
