"""Snapshots, streamed straight into the job's history; nowcasts, asked for by JSON or along with one, streamed back."""

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Request, Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from nowcast_server.jobs.history import Arrival
from nowcast_server.jobs.registry import Job
from nowcast_server.logs import log
from nowcast_server.nowcasting import Forecasts
from nowcast_server.service import Service
from nowcast_server.web.routes.calls import DeadlineS, OwnJob, TheService, check_body, json_body, parse, read_body, receive
from protos.errors import Busy, NowcastError, UnknownJob
from protos.frames import DTYPE_BYTES, MAX_HEADER_BYTES, MEDIA_TYPE, framed_bytes, write_frames
from protos.messages import NowcastRequest, SnapshotReceipt, Step

router = APIRouter(prefix="/jobs/{job}")

FRAMES: Final[dict[str, Any]] = {"content": {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}}
FORECASTS: Final[dict[str, Any]] = {"description": "The forecasts, (len(horizons), n)", **FRAMES}
BODY: Final = {"requestBody": {"required": True, **FRAMES}}
ASKED: Final = json_body(NowcastRequest)
SMALLEST_CHUNK: Final = 1024  # bytes of chunks on the whole, at least; their preludes count against the length of the body
RETRY_AFTER_S: Final = 1.0


@router.put("/snapshots/{step}", tags=["snapshots"], response_model=SnapshotReceipt, responses={200: FRAMES}, openapi_extra=BODY)
async def upload(
    job: OwnJob, step: Annotated[Step, Path()], service: TheService, request: Request, deadline_s: DeadlineS = None
) -> SnapshotReceipt | Response:
    """Store one snapshot, and forecast from it if its header asks for that. Sending it again with the same values is a no-op.

    If the snapshot was stored and the forecasts failed, the answer is the receipt; `POST …/nowcasts` then says why they failed.
    """
    service.admit()
    start = time.perf_counter()
    try:
        stored, asked = await _receive(job, step, service, request, deadline_s)
    except NowcastError as error:
        service.metrics.uploads.labels(error.code).inc()
        raise
    if stored:
        job.arrived()
        await service.recording.snapshot(job, step)
    seconds = time.perf_counter() - start
    job.course.took("upload", seconds)
    service.metrics.uploads.labels("stored" if stored else "replayed").inc()
    service.metrics.upload_seconds.observe(seconds)
    log.debug("snapshot", extra={"tenant": job.tenant, "job": job.id, "step": step, "stored": stored, "seconds": seconds})
    if asked is not None:
        with suppress(NowcastError):
            return await answer(job, asked, service, request, deadline_s=None if deadline_s is None else deadline_s - seconds)
    return SnapshotReceipt(step=step, steps=job.history.steps)


async def _receive(
    job: Job, step: int, service: Service, request: Request, deadline_s: float | None
) -> tuple[bool, NowcastRequest | None]:
    """Whether it was new, and what was asked for along with it."""
    payload = job.spec.wiring.size * DTYPE_BYTES[job.spec.dtype]
    max_bytes = MAX_HEADER_BYTES + payload + 20 * (payload // SMALLEST_CHUNK + 2)  # the longest stream it needs
    check_body(request.headers, media_type=MEDIA_TYPE, max_bytes=max_bytes)
    job.history.check_step(step)
    most_s, limit_s = deadline_s or float("inf"), service.settings.transfer_limit_s
    with service.jobs.using(job):
        service.jobs.restore(job)
        row = await _free_row(job, min(service.settings.upload_grace_s, most_s))
        try:
            arrival = Arrival(job.spec, step=step, values=job.history.row(row))

            def feed(piece: bytes) -> None:
                service.metrics.upload_bytes.inc(len(piece))
                arrival.feed(piece)

            await receive(request, feed, max_bytes=max_bytes, limit_s=lambda moved: min(limit_s(moved), most_s))
            progress, asked = arrival.close()
            if job.closed:
                raise UnknownJob(f"job {job.id!r} was deleted while its snapshot came", field="job")
            stored = await job.history.store(step, row)
            if stored:
                for forecaster, skill in job.track.came(step, job.history.row(row)):
                    service.metrics.skill.labels(forecaster).observe(skill)
                if progress is not None:  # a call that is repeated tells nothing new
                    job.tell(progress)
            return stored, asked
        finally:
            job.history.drop(row)


async def _free_row(job: Job, limit_s: float) -> int:
    try:
        async with asyncio.timeout(limit_s):
            return await job.history.take()
    except TimeoutError:
        raise Busy("forecasts and uploads hold all of the job's memory; try again", retry_after_s=RETRY_AFTER_S) from None


class FramesResponse(Response):
    """Sends forecasts from the memory they were made in, and then lets go of it by closing `held`. A client that has fetched so
    many bytes may be there `limit_s` after its begin. `sent` is told the seconds that took.
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
            body = bytes(piece)  # as ASGI has it, and as Serve's proxy can be sent it; a tenth of what its checksum takes
            await send({"type": "http.response.body", "body": body, "more_body": True})
            sent += len(piece)
            limit.reschedule(begun + self._limit_s(sent))
            await asyncio.sleep(0)  # a client that has gone takes every piece at once
        await send({"type": "http.response.body", "body": b"", "more_body": False})


@router.post(
    "/nowcasts", tags=["nowcasts"], status_code=200, response_class=FramesResponse, responses={200: FORECASTS}, openapi_extra=ASKED
)
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
    about = {"tenant": job.tenant, "job": job.id, "step": asked.step, "horizons": asked.horizons, "seconds": forecasts.seconds}
    log.info("nowcast", extra=about)
    sent = partial(job.course.took, "download")
    return FramesResponse(forecasts, held=held, limit_s=service.settings.transfer_limit_s, sent=sent)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
