"""Nowcasts: a JSON request, answered by a stream of frames."""

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Final

from fastapi import APIRouter, Request, Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from nowcast_server.jobs.registry import Job
from nowcast_server.logs import log
from nowcast_server.nowcasting import Forecasts
from nowcast_server.service import Service
from nowcast_server.web.routes.calls import PROBLEMS, DeadlineS, OwnJob, TheService, json_body, parse, read_body
from protos.frames import MEDIA_TYPE, framed_bytes, write_frames
from protos.messages import NowcastRequest

router = APIRouter(prefix="/jobs/{job}/nowcasts", tags=["nowcasts"])

BINARY: Final = {"schema": {"type": "string", "format": "binary"}}
RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    **PROBLEMS,
    200: {"description": "The forecasts, (len(horizons), n)", "content": {MEDIA_TYPE: BINARY}},
}


class FramesResponse(Response):
    """Sends forecasts from the memory they were made in, and then lets go of it by closing `held`.

    A client that has fetched so many bytes may be there `limit_s` after its begin. `sent` is told the seconds that took.
    """

    media_type = MEDIA_TYPE

    def __init__(
        self, forecasts: Forecasts, *, held: AsyncExitStack, limit_s: Callable[[int], float], sent: Callable[[float], None]
    ) -> None:
        super().__init__(headers={"content-length": str(framed_bytes(forecasts.header))})
        self._forecasts, self._held, self._limit_s, self._sent = forecasts, held, limit_s, sent

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 -- ASGI
        start = time.perf_counter()
        async with self._held:
            try:
                async with asyncio.timeout(None) as limit:
                    await self._send(send, limit)
            except TimeoutError:
                raise ClientDisconnect from None  # it is there, and takes nothing: all the same to us
        self._sent(time.perf_counter() - start)

    async def _send(self, send: Send, limit: asyncio.Timeout) -> None:
        begun, sent = asyncio.get_running_loop().time(), 0
        limit.reschedule(begun + self._limit_s(0))
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for piece in write_frames(self._forecasts.header, self._forecasts.payload):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            sent += len(piece)
            limit.reschedule(begun + self._limit_s(sent))
            await asyncio.sleep(0)  # a client that has gone takes every piece at once
        await send({"type": "http.response.body", "body": b"", "more_body": False})


@router.post("", status_code=200, response_class=FramesResponse, responses=RESPONSES, openapi_extra=json_body(NowcastRequest))
async def nowcast(job: OwnJob, service: TheService, request: Request, deadline_s: DeadlineS = None) -> FramesResponse:
    """Forecast the weights for one or more horizons."""
    service.admit()
    asked = await parse(NowcastRequest, await read_body(request, limit_s=service.settings.upload_grace_s))
    return await answer(job, asked, service, request, deadline_s=deadline_s)


async def answer(
    job: Job, asked: NowcastRequest, service: Service, request: Request, *, deadline_s: float | None
) -> FramesResponse:
    """Have forecasts made; `request` is the call that is answered, its body read."""
    asking = service.nowcasting.ask(
        job, asked, forecaster=service.forecasters[job.spec.forecaster], gone=partial(_gone, request), deadline_s=deadline_s
    )
    async with AsyncExitStack() as stack:
        forecasts = await stack.enter_async_context(asking)
        await service.recording.nowcast(job)
        service.map.nowcast(job)
        held = stack.pop_all()
    log.info(
        "nowcast",
        extra={"tenant": job.tenant, "job": job.id, "step": asked.step, "horizons": asked.horizons, "seconds": forecasts.seconds},
    )
    sent = partial(job.course.took, "download")
    return FramesResponse(forecasts, held=held, limit_s=service.settings.transfer_limit_s, sent=sent)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
