"""Snapshots: streamed straight into the job's history, and answered with forecasts where they are asked for along with it."""

import asyncio
import time
from contextlib import suppress
from typing import Annotated, Final

from fastapi import APIRouter, Path, Request, Response

from nowcast_server.jobs.arrival import Arrival
from nowcast_server.jobs.registry import Job
from nowcast_server.logs import log
from nowcast_server.service import Service
from nowcast_server.web.routes.calls import PROBLEMS, DeadlineS, OwnJob, TheService, check_body, receive
from nowcast_server.web.routes.nowcasts import BINARY, answer
from protos.errors import Busy, NowcastError, UnknownJob
from protos.frames import DTYPE_BYTES, MAX_HEADER_BYTES, MEDIA_TYPE
from protos.messages import JobSpec, NowcastRequest, SnapshotReceipt, Step

router = APIRouter(prefix="/jobs/{job}/snapshots", tags=["snapshots"], responses=PROBLEMS)

SMALLEST_CHUNK: Final = 1024
"""Chunks must have at least so many bytes on the whole; their preludes count against the length of the body."""

RETRY_AFTER_S: Final = 1.0

BODY = {"requestBody": {"required": True, "content": {MEDIA_TYPE: BINARY}}}


def max_body_bytes(spec: JobSpec) -> int:
    """The longest stream one snapshot of the job needs."""
    payload = spec.wiring.size * DTYPE_BYTES[spec.dtype]
    return MAX_HEADER_BYTES + payload + 20 * (payload // SMALLEST_CHUNK + 2)


@router.put("/{step}", response_model=SnapshotReceipt, responses={200: {"content": {MEDIA_TYPE: BINARY}}}, openapi_extra=BODY)
async def upload(
    job: OwnJob, step: Annotated[Step, Path()], service: TheService, request: Request, deadline_s: DeadlineS = None
) -> SnapshotReceipt | Response:
    """Take in one snapshot, and forecast from it if its header asks for that. Sent again with the same values it is a no-op.

    Where the snapshot was taken in and the forecasts failed, the receipt is the answer: asked for by themselves, they say why.
    """
    service.admit()
    start = time.perf_counter()
    try:
        stored, asked = await _within_limits(job, step, service, request, deadline_s)
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


async def _within_limits(
    job: Job, step: int, service: Service, request: Request, deadline_s: float | None
) -> tuple[bool, NowcastRequest | None]:
    """Whether it was new, and what was asked for along with it."""
    max_bytes = max_body_bytes(job.spec)
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
                service.metrics.scored(job.track.came(step, job.history.row(row)))
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
