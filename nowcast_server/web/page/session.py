"""Who looks at the page: a token typed into a form is kept in a cookie that no script can read, until the browser ends."""

from typing import Annotated, Any, Final
from urllib.parse import parse_qs, quote, unquote

from fastapi import Depends, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from nowcast_server.web.routes.calls import TheService
from protos.errors import Forbidden, TooLarge, Unauthorized

COOKIE: Final = "nowcast_token"
MAX_FORM_BYTES: Final = 4096
SECURITY: Final = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
"""Headers of every page: no script but the server's own files, nothing loaded from elsewhere, shown in no frame."""


class Page(HTMLResponse):
    """A page with the headers of `SECURITY`."""

    def __init__(self, content: str, **options: Any) -> None:
        super().__init__(content, **options)
        self.headers.update(SECURITY)


async def viewer(request: Request, service: TheService) -> str:
    """The tenant who looks. The cookie counts for the page alone: no call of the API takes it, so no other site can make one."""
    kept = request.cookies.get(COOKIE)
    return service.tokens.tenant(request.headers.get("authorization") or (f"Bearer {unquote(kept)}" if kept else None))


Viewer = Annotated[str, Depends(viewer)]


async def read_token(request: Request) -> str:
    """The token of the login form.

    Raises:
        Forbidden: another site has sent the form.
        TooLarge: it is longer than any token.
    """
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise Forbidden("the form of this server's own page is the only way to log in", field="sec-fetch-site")
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_FORM_BYTES:
            raise TooLarge(f"the form may have {MAX_FORM_BYTES} bytes", limit_bytes=MAX_FORM_BYTES)
    return parse_qs(body.decode("ascii", "replace")).get("token", [""])[0].strip()


def log_in(request: Request, service: TheService, token: str, *, to: str) -> Response | None:
    """Keep a token and go on to the page; None if it is not known."""
    try:
        service.tokens.tenant(f"Bearer {token}")
    except Unauthorized:
        return None
    answer = RedirectResponse(to, status_code=303, headers={"cache-control": "no-store"})
    secure = request.url.scheme == "https"
    answer.set_cookie(COOKIE, quote(token, safe=""), httponly=True, samesite="strict", secure=secure, path="/")
    return answer


def log_out(*, to: str) -> Response:
    """Forget the token."""
    answer = RedirectResponse(to, status_code=303, headers={"cache-control": "no-store"})
    answer.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
    return answer
