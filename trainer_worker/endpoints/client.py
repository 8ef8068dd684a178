"""The nowcast server over HTTP (API v1)."""

import json
import logging
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, Final, TypeVar

import httpx2
import stamina
import torch
from torch import Tensor

from protos.errors import BadForecast, BadFrame, Busy, DeadlineExceeded, NowcastError, Unavailable, UnknownJob, error_from_problem
from protos.frames import MEDIA_TYPE, FrameReader, Header, framed_bytes, write_frames
from protos.messages import (
    API,
    DEADLINE_HEADER,
    RUN_HEADER,
    SESSION_HEADER,
    JobSpec,
    JobStatus,
    NowcastRequest,
    Progress,
    Skill,
)
from trainer_worker.endpoints.deadline import Deadline, bounded_by
from trainer_worker.endpoints.http_client import http_client
from trainer_worker.endpoints.strangers import not_a_status, stranger_error

CONNECT_S: Final = 2.0
LONGEST_S: Final = 86_400.0
"""Of one call: a deadline may be infinite, and the time a socket waits may not."""
ATTEMPTS: Final = 3
FIRST_WAIT_S: Final = 0.1
MAX_ANSWER_BYTES: Final = 4 * 1024 * 1024
"""Of an answer that is JSON: a job's status, a problem."""

logging.getLogger("stamina").addHandler(logging.NullHandler())
"""Else, where a program sets up no log, Python prints every repeated call as a bare `stamina.retry_scheduled`."""

DTYPE_NAMES: Final = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}
T = TypeVar("T")


class HttpEndpoint:
    """One job on one server.

    Every call is safe to repeat, so a call that meets a connection refused or broken, or a server that asks to come again, is
    repeated up to twice within its deadline. A server that is not there is told within `CONNECT_S`.

    Args:
        url: of the server, `http://` or `https://`.
        job: id of the job.
        token: bearer token.
    """

    local = False

    def __init__(self, url: str, *, job: str, token: str | None = None) -> None:
        headers = {SESSION_HEADER: job, RUN_HEADER: uuid.uuid4().hex, "accept-encoding": "identity"}
        self._path = f"{API}/jobs/{job}"
        self._client = http_client(url, token=token, headers=headers)

    def register(self, spec: JobSpec, *, replace: bool, deadline: Deadline) -> Collection[int]:
        """PUT the job, after a DELETE with `replace`; the steps the server holds of it."""
        if replace:
            self._forget(deadline)
        body = spec.model_dump_json().encode()
        answer = self._call(
            "PUT", self._path, deadline, content=lambda: body, media="application/json", read=_status_reader(deadline)
        )
        return tuple(answer.steps)

    def send(self, step: int, snapshot: Tensor, *, deadline: Deadline) -> None:
        """PUT a snapshot, framed as it is read from `snapshot`."""
        header = Header("snapshot", DTYPE_NAMES[snapshot.dtype], tuple(snapshot.shape), step)

        def frames() -> Iterator[bytes]:
            for frame in write_frames(header, _bytes_of(snapshot)):
                deadline.check(f"sending snapshot {step}")
                yield frame  # type: ignore[misc]  # h11 and sockets take any buffer; httpx types it as bytes

        length = str(framed_bytes(header))
        self._call("PUT", f"{self._path}/snapshots/{step}", deadline, content=frames, media=MEDIA_TYPE, length=length)

    def forecast(
        self, context: Sequence[int], horizons: tuple[int, ...], out: Tensor, *, progress: Progress | None, deadline: Deadline
    ) -> None:
        """POST a nowcast; the stream that comes back is read into `out` as it arrives."""
        asked = NowcastRequest(context=list(context), horizons=list(horizons), progress=progress)
        body = asked.model_dump_json(exclude_none=True).encode()

        def read(response: httpx2.Response) -> None:
            expected = Header("forecasts", "float32", tuple(out.shape), asked.step, horizons)
            _read_forecasts(response, expected, out, deadline)

        path = f"{self._path}/nowcasts"
        self._call("POST", path, deadline, content=lambda: body, media="application/json", read=read)

    def finish(self, progress: Progress, *, deadline: Deadline) -> Skill:
        """POST the end of the run."""
        body = progress.model_dump_json(exclude_none=True).encode()
        path, read = f"{self._path}/finish", _status_reader(deadline)
        answer = self._call("POST", path, deadline, content=lambda: body, media="application/json", read=read)
        return answer.skill  # type: ignore[no-any-return]

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def _forget(self, deadline: Deadline) -> None:
        with suppress(UnknownJob):
            self._call("DELETE", self._path, deadline)

    def _call(
        self,
        method: str,
        path: str,
        deadline: Deadline,
        *,
        content: Callable[[], Any] | None = None,
        media: str | None = None,
        length: str | None = None,
        read: Callable[[httpx2.Response], Any] | None = None,
    ) -> Any:
        """Call, again if that may help; the answer as `read` gives it, by default as bytes."""
        headers = {name: value for name, value in (("content-type", media), ("content-length", length)) if value is not None}
        read = read or (lambda response: _read_short(response, deadline))
        for attempt in stamina.retry_context(
            on=lambda error: _again(error, deadline),
            attempts=ATTEMPTS,
            timeout=None,
            wait_initial=FIRST_WAIT_S,
            wait_jitter=0,  # jitter would draw from the process's random state, which is the training's
        ):
            with attempt, bounded_by(deadline), _transport_errors(f"{method} {path}"):
                left_s = min(deadline.check(f"{method} {path}"), LONGEST_S)
                with self._client.stream(
                    method,
                    path,
                    content=content() if content else None,
                    headers={**headers, DEADLINE_HEADER: f"{left_s:.3f}"},
                    timeout=httpx2.Timeout(left_s, connect=min(CONNECT_S, left_s)),
                ) as response:
                    if not response.is_success:
                        raise _error_of(response, _read_short(response, deadline))
                    return read(response)
        raise AssertionError("unreachable")


def _again(error: Exception, deadline: Deadline) -> bool | float:
    """Whether to repeat a call that failed, and when: in so many seconds, or soon."""
    if not isinstance(error, Unavailable | Busy):
        return False
    wait_s = error.extra.get("retry_after_s")
    if wait_s is None:
        return deadline.left_s > 10 * FIRST_WAIT_S
    return max(float(wait_s), FIRST_WAIT_S) if wait_s < deadline.left_s else False


@contextmanager
def _transport_errors(call: str) -> Iterator[None]:
    """Exceptions of httpx as the protocol's."""
    try:
        yield
    except httpx2.ConnectTimeout as error:
        raise Unavailable(f"{call}: the server does not take connections") from error
    except httpx2.ConnectError as error:
        detail = f"{call}: no server answers at this address ({error or type(error).__name__}); `nowcast-server run` starts one"
        raise Unavailable(detail) from error
    except httpx2.TimeoutException as error:
        raise DeadlineExceeded(f"{call} took longer than it may") from error
    except (httpx2.HTTPError, httpx2.StreamError) as error:
        raise Unavailable(f"{call}: {error or type(error).__name__}") from error
    except RuntimeError as error:  # httpx, when it is closed from another thread
        raise Unavailable(f"{call}: {error}") from error


def _read_short(response: httpx2.Response, deadline: Deadline) -> bytes:
    body = bytearray()
    for piece in response.iter_raw():
        deadline.check("reading the answer")
        body += piece
        if len(body) > MAX_ANSWER_BYTES:
            raise NowcastError(f"the answer is longer than {MAX_ANSWER_BYTES} bytes")
    return bytes(body)


def _status_reader(deadline: Deadline) -> Callable[[httpx2.Response], JobStatus]:
    def read(response: httpx2.Response) -> JobStatus:
        body = _read_short(response, deadline)
        try:
            return JobStatus.model_validate_json(body)
        except ValueError as error:
            media = response.headers.get("content-type", "")
            raise not_a_status(body, media=media, url=str(response.request.url)) from error

    return read


def _read_forecasts(response: httpx2.Response, expected: Header, out: Tensor, deadline: Deadline) -> None:
    def allocate(header: Header) -> memoryview:
        known = header if expected.horizons else replace(header, horizons=())  # none asked for: the forecaster's own
        if known != expected:
            raise BadFrame(f"asked for {expected}, got {header}", field="header")
        return _bytes_of(out)

    reader = FrameReader(allocate)
    try:
        for piece in response.iter_raw():
            deadline.check("reading the forecasts")
            reader.feed(piece)
        reader.close()
    except BadFrame as error:
        raise BadForecast(f"the forecasts cannot be read: {error.detail}", field=error.field) from error


def _error_of(response: httpx2.Response, body: bytes) -> NowcastError:
    try:
        problem = json.loads(body)
    except ValueError:
        problem = None
    waits = _retry_after(response.headers)
    if isinstance(problem, dict) and "code" in problem:
        return error_from_problem({**waits, **problem})
    error = stranger_error(response.status_code, response.headers, url=str(response.request.url))
    error.extra |= waits
    return error


def _retry_after(headers: httpx2.Headers) -> dict[str, Any]:
    try:
        return {"retry_after_s": max(0.0, float(headers["retry-after"]))}
    except (KeyError, ValueError):
        return {}


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor."""
    array: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return memoryview(array).cast("B")
