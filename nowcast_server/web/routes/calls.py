"""What calls have in common: whose they are, which job they are about, what their body may be."""

import asyncio
import json
import re
from collections.abc import Callable, Mapping
from json.decoder import JSONArray, JSONObject  # type: ignore[attr-defined]  # json's parser in Python
from typing import Annotated, Any, Final, TypeVar

from fastapi import Depends, Header, Path, Request
from pydantic import BaseModel, ValidationError

from nowcast_server.jobs.registry import Job
from nowcast_server.service import Service
from nowcast_server.web.problems import invalid
from protos.errors import BadRequest, DeadlineExceeded, TooLarge, UnsupportedMedia
from protos.messages import DEADLINE_HEADER, JOB_HEADER, RUN_HEADER, JobId, Problem, RunId

JSON: Final = "application/json"
MAX_MESSAGE_BYTES: Final = 64 * 1024  # of the small JSON bodies: nowcasts and outcomes
_LONE_SURROGATE: Final = re.compile(
    rb"\\u[dD](?:[89abAB]..(?!\\u[dD][c-fC-F])|[c-fC-F](?<!\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD].))", re.DOTALL
)
"""Half of a pair. That it begins with two letters matters: they are looked for a hundred times faster than anything else."""

Scan = Callable[[str, int], Any]
Run = Annotated[RunId | None, Header(alias=RUN_HEADER)]
Model = TypeVar("Model", bound=BaseModel)

PROBLEMS: Final[dict[int | str, dict[str, Any]]] = {
    "default": {"description": "The call failed; `code` says why", "model": Problem, "content": {"application/problem+json": {}}}
}


def of_app(name: str) -> Any:
    """A dependency: what the state of the app has under a name."""

    # a coroutine, though it waits for nothing, as the others are: FastAPI would call plain functions in a thread each
    async def found(request: Request) -> Any:
        return getattr(request.app.state, name)

    return Depends(found)


TheService = Annotated[Service, of_app("service")]


async def _tenant(service: TheService, authorization: Annotated[str | None, Header()] = None) -> str:
    return service.tokens.tenant(authorization)


Tenant = Annotated[str, Depends(_tenant)]


async def _job_id(job: Annotated[JobId, Path()], _: Tenant, session: Annotated[str | None, Header(alias=JOB_HEADER)] = None) -> str:
    if session not in (None, job):
        raise BadRequest(f"{JOB_HEADER} must name the job of the path", field=JOB_HEADER)
    return job


TheJobId = Annotated[str, Depends(_job_id)]


async def _job(service: TheService, tenant: Tenant, job: TheJobId) -> Job:
    return service.jobs.get(tenant, job)


TheJob = Annotated[Job, Depends(_job)]


async def _own_job(job: TheJob, run: Run = None) -> Job:
    job.check_run(run)
    return job


OwnJob = Annotated[Job, Depends(_own_job)]  # the job, if it is the calling run's


DeadlineS = Annotated[float | None, Header(alias=DEADLINE_HEADER, gt=0, allow_inf_nan=False)]


def json_body(model: type[BaseModel], *, required: bool = True) -> dict[str, Any]:
    """The OpenAPI description of a body that `read_body` reads."""
    return {"requestBody": {"required": required, "content": {JSON: {"schema": model.model_json_schema()}}}}


def check_body(headers: Mapping[str, str], *, media_type: str, max_bytes: int) -> None:
    """Raise UnsupportedMedia or TooLarge by what the headers say of the body, before any of it is read."""
    if headers.get("content-type", "").partition(";")[0].strip().lower() != media_type:
        raise UnsupportedMedia(f"send the body as {media_type}", field="content-type")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMedia("send the body as it is, not compressed", field="content-encoding")
    length = headers.get("content-length", "0")
    if not length.isdigit() or int(length) > max_bytes:
        raise TooLarge(f"the body may have {max_bytes} bytes", field="content-length", limit_bytes=max_bytes)


async def receive(request: Request, feed: Callable[[bytes], object], *, max_bytes: int, limit_s: Callable[[int], float]) -> None:
    """Hand on a body as it comes. TooLarge beyond `max_bytes`; DeadlineExceeded after more than `limit_s` of the bytes so far."""
    begun, received, pieces = asyncio.get_running_loop().time(), 0, request.stream()
    try:
        async with asyncio.timeout(None) as limit:
            while True:
                limit.reschedule(begun + limit_s(received))
                piece = await anext(pieces, None)
                if piece is None:
                    return
                received += len(piece)
                if received > max_bytes:
                    raise TooLarge(f"the body may have {max_bytes} bytes", field="content-length", limit_bytes=max_bytes)
                feed(piece)
    except TimeoutError:
        raise DeadlineExceeded(f"after {received} bytes the body came too slowly, or its deadline passed") from None


async def read_body(request: Request, *, max_bytes: int = MAX_MESSAGE_BYTES, limit_s: float) -> bytes:
    """Read a JSON body. Raise UnsupportedMedia, TooLarge or DeadlineExceeded before it is parsed."""
    check_body(request.headers, media_type=JSON, max_bytes=max_bytes)
    body = bytearray()
    await receive(request, body.extend, max_bytes=max_bytes, limit_s=lambda _: limit_s)
    return bytes(body)


async def parse(model: type[Model], body: bytes) -> Model:
    """Validate a JSON body; a large one off the event loop. Raise BadRequest or BadWiring, naming the field."""
    try:
        if len(body) <= MAX_MESSAGE_BYTES:
            return model.model_validate_json(body)
        return await asyncio.to_thread(_parse_large, model, body)
    except ValidationError as error:
        raise invalid(error.errors(include_input=False, include_url=False)) from None


def _parse_large(model: type[Model], body: bytes) -> Model:
    """The same in small pieces: a parser in C would keep the event loop waiting for its whole body."""
    if _LONE_SURROGATE.search(body):
        raise BadRequest("the body has half of a surrogate pair")
    decoder: Any = json.JSONDecoder()
    decoder.scan_once = _scanner(3, decoder.scan_once)
    try:
        data = decoder.decode(body.decode())
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {str(error)[:200]}") from None
    return model.model_validate(data)


def _scanner(levels: int, values: Scan) -> Scan:
    """Reads the value at a place in a text, and where it ends: for so many levels in Python, what is in them by `values`."""
    if not levels:
        return values
    inner = _scanner(levels - 1, values)

    def scan(text: str, start: int) -> Any:
        match text[start : start + 1]:
            case "{":
                return JSONObject((text, start + 1), True, inner, None, None)
            case "[":
                return JSONArray((text, start + 1), inner)
        return values(text, start)

    return scan
