"""Recognise answers that do not come from a nowcast server: a proxy, a login page, another service."""

from collections.abc import Mapping
from typing import Final

from protos.errors import BadRequest, MethodNotAllowed, NotFound, NowcastError, TooLarge, Unauthorized, Unavailable

_LOGIN: Final = (Unauthorized, "{url} asks for a login that is no nowcast server's (status {status}): a proxy stands before it")
_MEANINGS: Final[dict[int, tuple[type[NowcastError], str]]] = {
    401: _LOGIN,
    403: _LOGIN,
    404: (NotFound, "{url} is not there: is this a nowcast server, and is a path before /v1 missing?"),
    405: (MethodNotAllowed, "{url} does not take this call: another service, not a nowcast server"),
    407: (Unauthorized, "the proxy asks for a login: put it into HTTPS_PROXY as http://USER:PASSWORD@HOST"),
    413: (TooLarge, "a proxy before {url} takes no body of this size: raise its limit (nginx: client_max_body_size)"),
}
"""By status."""


def stranger_error(status: int, headers: Mapping[str, str], *, url: str) -> NowcastError:
    """Name what an answer means that is not of the protocol.

    Args:
        status: of HTTP.
        headers: of the answer.
        url: that was asked for.
    """
    if status >= 500:
        return Unavailable(f"{url} answers {status}; a proxy that does not reach its server?")
    if 300 <= status < 400:
        place = headers.get("location", "another address")
        return BadRequest(f"{url} redirects to {place} (status {status}): give that server's address", field="server")
    kind, meaning = _MEANINGS.get(status, (BadRequest, "{url} answers {status}, as no nowcast server does"))
    return kind(meaning.format(url=url, status=status), field="server")


def not_a_status(body: bytes, *, media: str, url: str) -> NowcastError:
    """Name an answer of success that is none of a nowcast server's."""
    if "html" in media or body.lstrip()[:1] == b"<":
        return BadRequest(f"{url} answers with a web page, perhaps a login: give the nowcast server's own address", field="server")
    return BadRequest(f"{url} does not answer as a nowcast server does", field="server")
