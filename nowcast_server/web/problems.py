"""Answer every failure of a call as problem+json with a stable code, without internal details."""

import asyncio
import logging
import math
import time
from collections.abc import Sequence
from typing import Any, Final

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nowcast_server.logs import log
from nowcast_server.nowcasting import Gone
from nowcast_server.service import Service
from protos.errors import BadRequest, DeadlineExceeded, MethodNotAllowed, NotFound, NowcastError, TooLarge, Unavailable
from protos.messages import Problem

REFUSED_BYTES: Final = 1024 * 1024  # of a body that was refused, as much as this is thrown away
PROBLEM_TYPE: Final = "application/problem+json"
_OF_STATUS: Final = {404: NotFound, 405: MethodNotAllowed, 413: TooLarge}


def problem_response(error: NowcastError, *, hang_up: bool = False) -> Response:
    """The error as the client sees it; `hang_up` closes the connection after it."""
    problem = Problem(
        title=error.title, status=error.status, detail=error.detail, code=error.code, field=error.field, **error.extra
    )
    headers = {"connection": "close"} if hang_up else {}
    if "retry_after_s" in error.extra:
        headers["retry-after"] = str(math.ceil(error.extra["retry_after_s"]))
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    body = problem.model_dump_json(exclude_none=True)
    return Response(body, status_code=error.status, media_type=PROBLEM_TYPE, headers=headers)


def invalid(errors: Sequence[Any]) -> BadRequest:
    """Pydantic's findings as one error that names the first field, which may be of any length; the value is not repeated."""
    first = errors[0]
    field = ".".join(str(part)[:100] for part in first["loc"] if part not in ("body", "path", "query", "header"))[:200]
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return BadRequest(f"{field or 'the body'}: {first['msg']}{more}"[:500], field=field or None)


def install(app: FastAPI, service: Service) -> None:
    """Render all errors of `app`, those of FastAPI and Starlette as well."""

    async def render(request: Request, error: Exception) -> Response:
        known = _known(error)
        service.metrics.errors.labels(known.code).inc()
        level = logging.WARNING if known.status >= 500 and not isinstance(known, Unavailable) else logging.INFO
        if request.url.path == "/readyz":  # asked for every second, and no news
            level = logging.DEBUG
        about = {"status": known.status, "code": known.code, "detail": known.detail}
        log.log(level, "call refused", extra={**_call(request.scope), **about})
        return problem_response(known, hang_up=_hangs_up(request, known))

    for kind in (NowcastError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, render)
    app.add_middleware(Boundary, service=service)


def _known(error: Exception) -> NowcastError:
    if isinstance(error, NowcastError):
        return error
    if isinstance(error, RequestValidationError):
        return invalid(error.errors())
    assert isinstance(error, HTTPException)
    return _OF_STATUS.get(error.status_code, BadRequest)(str(error.detail))


def _hangs_up(request: Request, error: NowcastError) -> bool:
    """May more of an unwanted body come than is worth throwing away? After a short one the client keeps its connection."""
    length = request.headers.get("content-length", "0")
    long = not length.isdigit() or int(length) > REFUSED_BYTES
    return long or "transfer-encoding" in request.headers or isinstance(error, TooLarge | DeadlineExceeded)


def _call(scope: Scope) -> dict[str, Any]:
    params = scope.get("path_params", {})
    return {"method": scope["method"], "path": scope["path"], "job": params.get("job"), "step": params.get("step")}


class Boundary:
    """Nothing unexpected passes: it is logged with its job and step, and the client reads `internal`, no more."""

    def __init__(self, app: ASGIApp, *, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except (Gone, ClientDisconnect):
            log.info("client disconnected", extra=_call(scope))
        except asyncio.CancelledError:  # by uvicorn, when the drain is over
            log.info("call cut off", extra=_call(scope))
            if not status:
                stopping = Unavailable("the server is stopping", retry_after_s=5)
                await problem_response(stopping, hang_up=True)(scope, receive, watched)
        except Exception:
            self._service.metrics.errors.labels(NowcastError.code).inc()
            log.exception("call failed", extra=_call(scope))
            if status:  # too late to say so; an answer cut short tells it
                raise
            await problem_response(NowcastError("the server failed; its log says why"))(scope, receive, watched)
        else:
            log.debug("call", extra={**_call(scope), "status": status, "seconds": time.perf_counter() - start})
