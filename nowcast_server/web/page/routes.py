"""Routes of the live page. A token typed into its form is kept in a cookie that no script can read, until the browser ends."""

import asyncio
import json
from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Any, Final
from urllib.parse import parse_qs, quote, unquote

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from nowcast_server.service import Service
from nowcast_server.web.page.render import STATIC, Renderer, wiring_table
from nowcast_server.web.page.source import Local, Source
from nowcast_server.web.routes.calls import TheService, of_app, receive
from protos.errors import Busy, Forbidden, Unauthorized, UnknownJob
from protos.messages import JobId

PERIOD_S: Final = 1.0  # between two looks at what has changed
MAX_VIEWERS: Final = 64  # pages that are kept up to date at once
COOKIE: Final = "nowcast_token"
MAX_FORM_BYTES: Final = 4096
FORM_S: Final = 30.0
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

router = APIRouter(include_in_schema=False)
Page = partial(HTMLResponse, headers=SECURITY)


class _Files(StaticFiles):
    """Files whose paths hold their edition, so that browsers may keep them for good."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        answer = await super().get_response(path.partition("/")[2], scope)
        answer.headers.update({**SECURITY, "cache-control": "public, max-age=31536000, immutable"})
        return answer


def install(app: FastAPI, service: Service) -> None:
    """Add the page to an app. Where there are replicas, `app.state.page_source` is theirs to set."""
    app.state.page_source = Source(Local(service).ask)
    app.state.page_renderer = Renderer()
    app.include_router(router)
    app.mount("/static", _Files(directory=STATIC), name="static")


async def _viewer(request: Request, service: TheService) -> str:
    """The tenant who looks. The cookie counts for the page alone: no call of the API takes it, so no other site can make one."""
    kept = request.cookies.get(COOKIE)
    return service.tokens.tenant(request.headers.get("authorization") or (f"Bearer {unquote(kept)}" if kept else None))


async def _looking(request: Request, service: TheService) -> str | None:
    """The viewer, or None where a token has to be asked for."""
    try:
        return await _viewer(request, service)
    except Unauthorized:
        return None


async def _place(service: TheService) -> None:
    """Raise Busy if too many pages are kept up to date: a stream that has begun cannot say so."""
    if service.viewers >= MAX_VIEWERS:
        raise Busy(f"{MAX_VIEWERS} live pages are open (the limit)", retry_after_s=60)


Viewer = Annotated[str, Depends(_viewer)]
Looking = Annotated[str | None, Depends(_looking)]
TheSource = Annotated[Source, of_app("page_source")]


async def _renderer(request: Request, tenant: Looking) -> Renderer:
    renderer: Renderer = request.app.state.page_renderer
    return renderer.at(request, tenant=tenant)


TheRenderer = Annotated[Renderer, Depends(_renderer)]  # writes the page for its viewer


@router.head("/")
@router.get("/")
async def overview(tenant: Looking, source: TheSource, render: TheRenderer) -> Response:
    """All jobs of the viewer; with none, how to attach the first one."""
    if tenant is None:
        return RedirectResponse(f"{render.base}/login", status_code=303)
    return Page(render.overview(await source.overview(tenant)))


@router.get("/events", response_class=EventSourceResponse, dependencies=[Depends(_place)])
async def follow(
    tenant: Viewer, service: TheService, source: TheSource, render: TheRenderer, shown: str = ""
) -> AsyncIterator[ServerSentEvent]:
    """Rows of the overview as they change, since the page was loaded that was `shown`."""
    async for sent in _looks(service, shown=shown):
        html = render.changes(await source.overview(tenant), sent)
        if html:
            yield ServerSentEvent(raw_data=html)


@router.get("/jobs/{job}")
async def job(job: JobId, tenant: Looking, source: TheSource, render: TheRenderer) -> Response:
    if tenant is None:
        return RedirectResponse(f"{render.base}/login", status_code=303)
    course = await source.course(tenant, job)
    if course is None:
        return Page(render.write("lost.html", job=job), status_code=404)
    return Page(render.job(course, (await source.overview(tenant)).jobs))


@router.get("/jobs/{job}/events", response_class=EventSourceResponse, dependencies=[Depends(_place)])
async def follow_job(
    job: JobId, tenant: Viewer, service: TheService, source: TheSource, render: TheRenderer
) -> AsyncIterator[ServerSentEvent]:
    """A job's facts as HTML and its points as JSON, as they change."""
    async for sent in _looks(service):
        course = await source.course(tenant, job)
        others = (await source.overview(tenant)).jobs
        if html := render.job_changes(course, others, sent):
            yield ServerSentEvent(raw_data=html)
        if course is not None and sent.get("points") != course.stamp[0]:
            sent["points"] = course.stamp[0]
            rows = [[each.step, round(each.seconds, 1), *map(_short, each[2:])] for each in course.points]
            yield ServerSentEvent(event="course", raw_data=json.dumps(rows, separators=(",", ":")))


@router.get("/jobs/{job}/wiring")
async def wiring(job: JobId, tenant: Viewer, source: TheSource, render: TheRenderer) -> Response:
    """How a job's network is wired, for its page."""
    found = await source.wiring(tenant, job)
    if found is None:
        raise UnknownJob(f"job {job!r} is not registered here", field="job")
    return Page(render.write("wiring.html", **await asyncio.to_thread(wiring_table, found)))


@router.get("/map")
async def training_map(request: Request, tenant: Looking, source: TheSource, render: TheRenderer) -> Response:
    """Where the viewer's runs are in weight space."""
    if tenant is None:
        return RedirectResponse(f"{render.base}/login", status_code=303)
    return Page(await _map("map.html", request, tenant, source, render))


@router.get("/map/picture")
async def map_picture(request: Request, tenant: Viewer, source: TheSource, render: TheRenderer) -> Response:
    """What changes of that page."""
    return Page(await _map("picture.html", request, tenant, source, render))


async def _map(template: str, request: Request, tenant: str, source: Source, render: Renderer) -> str:
    network, by = (request.query_params.get(name, "") for name in ("network", "by"))
    seen = await asyncio.to_thread(render.maps.seen, await source.map(tenant), tenant=tenant, network=network, by=by)
    return render.write(template, **seen)


@router.get("/login")
async def ask_token(render: TheRenderer) -> Response:
    """The form that asks for a token."""
    return Page(render.write("login.html", wrong=False))


@router.post("/login")
async def log_in(request: Request, service: TheService, render: TheRenderer) -> Response:
    """Keep the token of the form, if it is known."""
    token = await _token_of_form(request)
    try:
        service.tokens.tenant(f"Bearer {token}")
    except Unauthorized:
        return Page(render.write("login.html", wrong=True), status_code=401)
    answer = RedirectResponse(f"{render.base}/", status_code=303, headers={"cache-control": "no-store"})
    answer.set_cookie(COOKIE, quote(token, safe=""), httponly=True, samesite="strict", secure=request.url.scheme == "https")
    return answer


@router.post("/logout")
async def log_out(request: Request, render: TheRenderer) -> Response:
    await _token_of_form(request)
    answer = RedirectResponse(f"{render.base}/login", status_code=303, headers={"cache-control": "no-store"})
    answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return answer


async def _token_of_form(request: Request) -> str:
    """The token of the login form. Raise Forbidden if another site has sent the form, TooLarge if no token is that long."""
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise Forbidden("the form of this server's own page is the only way to log in", field="sec-fetch-site")
    body = bytearray()
    await receive(request, body.extend, max_bytes=MAX_FORM_BYTES, limit_s=lambda _: FORM_S)
    return parse_qs(body.decode("ascii", "replace")).get("token", [""])[0].strip()


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


async def _looks(service: Service, **sent: Any) -> AsyncIterator[dict[str, Any]]:
    """A look every `PERIOD_S`, with what the viewer was shown before, until the server goes, or asks for tokens anew."""
    service.viewers += 1
    tokens = service.tokens
    try:
        while service.tokens is tokens and not service.draining:
            yield sent
            await asyncio.sleep(PERIOD_S)
    finally:
        service.viewers -= 1
