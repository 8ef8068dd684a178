"""Routes of the live page: overview, jobs, updates, login."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import astuple
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Request
from fastapi.responses import RedirectResponse, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent

from nowcast_server.service import Service
from nowcast_server.web.page import session
from nowcast_server.web.page.render import Renderer
from nowcast_server.web.page.session import Page, Viewer
from nowcast_server.web.page.source import Source
from nowcast_server.web.page.views import CourseView
from nowcast_server.web.page.wiring import wiring_table
from nowcast_server.web.routes.calls import TheService
from protos.errors import Busy, Unauthorized, UnknownJob
from protos.messages import JobId

PERIOD_S: Final = 1.0
"""Between two looks at what has changed."""
MAX_VIEWERS: Final = 64
"""Pages that are kept up to date at once."""

router = APIRouter(include_in_schema=False)


async def _source(request: Request) -> Source:
    source: Source = request.app.state.page_source
    return source


async def _renderer(request: Request) -> Renderer:
    renderer: Renderer = request.app.state.page_renderer
    return renderer.at(request)


async def _place(service: TheService) -> None:
    """Raise Busy if too many pages are kept up to date already: a stream that has begun cannot say so."""
    if service.viewers >= MAX_VIEWERS:
        raise Busy(f"{MAX_VIEWERS} live pages are open (the limit)", retry_after_s=60)


TheSource = Annotated[Source, Depends(_source)]
TheRenderer = Annotated[Renderer, Depends(_renderer)]
"""Writes the page for the address it was called at."""


@router.get("/", response_class=Page)
async def overview(request: Request, service: TheService, source: TheSource, render: TheRenderer) -> Response:
    """All jobs of the viewer; with none, how to attach the first one."""
    tenant = await _looking(request, service)
    if tenant is None:
        return RedirectResponse(render.path("/login"), status_code=303)
    return Page(render.overview(await source.overview(tenant), tenant=tenant))


@router.get("/events", response_class=EventSourceResponse, dependencies=[Depends(_place)])
async def follow(tenant: Viewer, service: TheService, source: TheSource, render: TheRenderer) -> AsyncIterator[ServerSentEvent]:
    """Rows of the overview as they change."""
    async for sent in _looks(service):
        html = render.changes(await source.overview(tenant), sent)
        if html:
            yield ServerSentEvent(raw_data=html)


@router.get("/jobs/{job}", response_class=Page)
async def job(job: JobId, request: Request, service: TheService, source: TheSource, render: TheRenderer) -> Response:
    """A job in full."""
    tenant = await _looking(request, service)
    if tenant is None:
        return RedirectResponse(render.path("/login"), status_code=303)
    course = await source.course(tenant, job)
    if course is None:
        return Page(render.lost(job, tenant=tenant), status_code=404)
    return Page(render.job(course, others=(await source.overview(tenant)).jobs, tenant=tenant))


@router.get("/jobs/{job}/events", response_class=EventSourceResponse, dependencies=[Depends(_place)])
async def follow_job(
    job: JobId, tenant: Viewer, service: TheService, source: TheSource, render: TheRenderer
) -> AsyncIterator[ServerSentEvent]:
    """A job's facts as HTML and its new points as JSON, as they change."""
    start = thinned = 0
    async for sent in _looks(service):
        course = await source.course(tenant, job, start=start, thinned=thinned)
        others = (await source.overview(tenant)).jobs
        if html := render.job_changes(course, others, sent):
            yield ServerSentEvent(raw_data=html)
        if course is None:
            continue
        first, start, thinned = not start, course.start + len(course.points), course.thinned
        if first or sent.get("points") != course.view.stamp[0]:
            sent["points"] = course.view.stamp[0]
            yield ServerSentEvent(event="course", raw_data=points_json(course))


@router.get("/jobs/{job}/course.csv")
async def course_csv(job: JobId, tenant: Viewer, source: TheSource) -> Response:
    """The curves of a job as a table."""
    course = await source.course(tenant, job)
    if course is None:
        raise UnknownJob(f"job {job!r} is not registered here", field="job")
    rows = [",".join("" if value is None else f"{value:.9g}" for value in astuple(point)) for point in course.points]
    headers = {"content-disposition": f'attachment; filename="{job}.csv"'}
    return Response("\n".join(["step,seconds,loss,gain,coherence", *rows, ""]), media_type="text/csv", headers=headers)


@router.get("/jobs/{job}/wiring", response_class=Page)
async def wiring(job: JobId, tenant: Viewer, source: TheSource, render: TheRenderer) -> Page:
    """How a job's network is wired, for its page."""
    found = await source.wiring(tenant, job)
    if found is None:
        raise UnknownJob(f"job {job!r} is not registered here", field="job")
    return Page(render.wiring(await asyncio.to_thread(wiring_table, found)))


@router.get("/login", response_class=Page)
async def ask_token(render: TheRenderer) -> Page:
    """The form that asks for a token."""
    return Page(render.login())


@router.post("/login")
async def log_in(request: Request, service: TheService, render: TheRenderer) -> Response:
    """Keep the token of the form, if it is known."""
    answer = session.log_in(request, service, await session.read_token(request), to=render.path("/"))
    return answer or Page(render.login(wrong=True), status_code=401)


@router.post("/logout")
async def log_out(request: Request, render: TheRenderer) -> Response:
    """Forget the token."""
    await session.read_token(request)
    return session.log_out(to=render.path("/login"))


def points_json(course: CourseView) -> str:
    """Points for the charts: `rows` replace all from the `start`-th on."""
    rows = [
        [point.step, round(point.seconds, 1), *(_short(value) for value in (point.loss, point.gain, point.coherence))]
        for point in course.points
    ]
    return json.dumps({"start": course.start, "rows": rows}, separators=(",", ":"))


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


async def _looking(request: Request, service: Service) -> str | None:
    """The viewer, or None where a token has to be asked for."""
    try:
        return await session.viewer(request, service)
    except Unauthorized:
        return None


async def _looks(service: Service) -> AsyncIterator[dict[str, Any]]:
    """A look every `PERIOD_S`, with what the viewer was shown before, until the server goes."""
    service.viewers += 1
    sent: dict[str, Any] = {}
    try:
        while not service.draining:
            yield sent
            await asyncio.sleep(PERIOD_S)
    finally:
        service.viewers -= 1
