"""The nowcast server over HTTP (API v1)."""

import json
import logging
import math
import os
import socket
import ssl
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from ipaddress import ip_address
from typing import Any, Final, TypeVar

import httpx2
import torch
from pydantic import BaseModel
from torch import Tensor

from protos.errors import BadForecast, BadFrame, BadRequest, Busy, DeadlineExceeded, NowcastError, Unavailable, UnknownJob
from protos.frames import MEDIA_TYPE, FrameReader, Header, framed_bytes, write_frames
from protos.messages import API, DEADLINE_HEADER, JOB_HEADER, RUN_HEADER, Info, JobSpec, JobStatus, NowcastRequest, Progress, Skill
from trainer_worker.endpoints.endpoint import Asked, Deadline
from trainer_worker.errors import BadArgument

CONNECT_S: Final = 2.0
LONGEST_S: Final = 86_400.0  # of one call: a deadline may be infinite, and the time a socket waits may not
SILENT_S: Final = 30.0  # a server that takes no byte of an upload for so long is given up, however much time is left
ATTEMPTS: Final = 3
FIRST_WAIT_S: Final = 0.1
MAX_ANSWER_BYTES: Final = 4 * 1024 * 1024  # of an answer that is JSON: a job's status, a problem

_HINTS: Final = {  # by status, for an answer that is not of the protocol
    407: "the proxy asks for a login: put it into HTTPS_PROXY as http://USER:PASSWORD@HOST",
    413: "a proxy before it takes no body of this size: raise its limit (nginx: client_max_body_size)",
}

if (_calls := logging.getLogger("httpx2")).level == logging.NOTSET:
    _calls.setLevel(logging.WARNING)  # a line for each request would hide what a run tells

T = TypeVar("T")
Answer = TypeVar("Answer", bound=BaseModel)


class HttpEndpoint:
    """One job on one server. Every call is safe to repeat: one whose connection is refused or broken, or which is told to wait, is
    repeated up to twice within its deadline. Then the connection is shut down, as httpx gives each wait for a socket its
    timeout anew, and a server that sends a byte now and then could hold a call for ever. Raises `BadArgument`: the address is no
    URL, the token cannot be one, or a proxy or certificate of the environment cannot be used.
    """

    local = False

    def __init__(self, url: str, *, job: str, token: str | None = None) -> None:
        headers = {JOB_HEADER: job, RUN_HEADER: uuid.uuid4().hex, "accept-encoding": "identity"}
        self._path = f"{API}/jobs/{job}"
        self._client = _http_client(url, token=token, headers=headers)
        self._socket: socket.socket | None = None

    def register(self, spec: JobSpec, *, replace: bool, deadline: Deadline) -> Collection[int]:
        """PUT the job, after a DELETE with `replace`; the steps the server holds of it."""
        if replace:
            with suppress(UnknownJob):
                self._call("DELETE", self._path, deadline, read=_read_short)
        return tuple(self._call("PUT", self._path, deadline, read=partial(_read, JobStatus), message=spec).steps)

    def send(self, step: int, snapshot: Tensor, *, progress: Progress | None = None, deadline: Deadline) -> None:
        """PUT a snapshot, framed as it is read from memory."""
        self._put(step, snapshot, progress, deadline, read=_read_short)

    def _put(
        self,
        step: int,
        snapshot: Tensor,
        progress: Progress | None,
        deadline: Deadline,
        *,
        read: Callable[[httpx2.Response], T],
        request: NowcastRequest | None = None,
    ) -> T:
        told, asked = (each and each.model_dump(exclude_none=True) for each in (progress, request))
        header = Header("snapshot", str(snapshot.dtype)[6:], tuple(snapshot.shape), step, progress=told, request=asked)

        def frames() -> Iterator[bytes]:
            for frame in write_frames(header, _bytes_of(snapshot)):
                deadline.check(f"sending snapshot {step}")
                yield frame  # type: ignore[misc]  # h11 and sockets take any buffer; httpx types it as bytes

        headers = {"content-type": MEDIA_TYPE, "content-length": str(framed_bytes(header))}
        path = f"{self._path}/snapshots/{step}"
        silent_s = math.inf if request else SILENT_S  # a forecast takes what it takes
        return self._call("PUT", path, deadline, read=read, content=frames, headers=headers, silent_s=silent_s)

    def forecast(self, asked: Asked, out: Tensor, *, deadline: Deadline) -> None:
        """PUT the newest snapshot with the request for a nowcast, or POST the request; read the answer into `out` as it comes."""
        request = NowcastRequest(context=list(asked.context), horizons=list(asked.horizons))
        header = Header("forecasts", "float32", tuple(out.shape), request.step, asked.horizons)
        read, newest = partial(_read_forecasts, header, out), asked.newest
        if newest is not None and self._put(request.step, newest, asked.progress, deadline, read=read, request=request):
            return
        if not self._call("POST", f"{self._path}/nowcasts", deadline, read=read, message=request):  # after a receipt, it says why
            raise BadForecast("the answer holds no forecasts")

    def finish(self, progress: Progress, *, deadline: Deadline) -> Skill:
        return self._call("POST", f"{self._path}/finish", deadline, read=partial(_read, JobStatus), message=progress).skill

    def info(self, *, deadline: Deadline) -> Info:
        """GET what the server says of itself."""
        return self._call("GET", f"{API}/info", deadline, read=partial(_read, Info))

    def close(self) -> None:
        """Close all connections; a call under way fails at once."""
        self._cut()
        self._client.close()

    def _call(
        self,
        method: str,
        path: str,
        deadline: Deadline,
        *,
        read: Callable[[httpx2.Response], T],
        message: BaseModel | None = None,
        content: Callable[[], Any] | None = None,
        headers: Mapping[str, str] | None = None,
        silent_s: float = math.inf,
    ) -> T:
        """Call, again if that may help; the answer as `read` gives it."""
        if message is not None:
            body = message.model_dump_json(exclude_none=True).encode()
            content, headers = (lambda: body), {"content-type": "application/json"}
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with _transport_errors(f"{method} {path}", deadline), deadline.cutting(self._cut):
                    left_s = min(deadline.check(f"{method} {path}"), LONGEST_S)
                    with self._client.stream(
                        method,
                        path,
                        content=content() if content else None,
                        headers={**(headers or {}), DEADLINE_HEADER: f"{left_s:.3f}"},
                        timeout=httpx2.Timeout(min(left_s, silent_s), connect=min(CONNECT_S, left_s)),
                        extensions={"trace": lambda event, info: self._trace(event, info, deadline)},
                    ) as response:
                        if not response.is_success:
                            raise _error_of(response)
                        return read(response)
            except (Unavailable, Busy) as error:
                wait_s = max(error.extra.get("retry_after_s", 0.0), attempt * FIRST_WAIT_S)
                if attempt == ATTEMPTS or wait_s >= deadline.left_s:
                    raise
            deadline.pause(wait_s)
        raise AssertionError("unreachable")

    def _trace(self, event: str, info: Mapping[str, Any], deadline: Deadline) -> None:
        """Remember the connection; calls come one after the other, so there is one."""
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            self._socket = info["return_value"].get_extra_info("socket")
            if deadline.left_s <= 0:
                self._cut()

    def _cut(self) -> None:
        """Shut the connection down, which ends a wait for it in another thread."""
        if self._socket is not None:
            with suppress(OSError):  # it is closed already
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)  # an SSLSocket's own also changes its state


@contextmanager
def _transport_errors(call: str, deadline: Deadline) -> Iterator[None]:
    try:
        yield
    except (httpx2.HTTPError, httpx2.StreamError, RuntimeError) as error:  # RuntimeError: closed from another thread
        if isinstance(error, httpx2.ConnectTimeout):
            raise Unavailable(f"{call}: the server does not take connections") from error
        if deadline.left_s <= 0 or isinstance(error, httpx2.TimeoutException):
            raise DeadlineExceeded(f"{call} took longer than it may") from error
        if isinstance(error, httpx2.ConnectError):
            raise _unreached(error) from error
        raise Unavailable(f"{call}: {str(error) or type(error).__name__}") from error


def _read_short(response: httpx2.Response) -> bytes:
    body = bytearray()
    for piece in response.iter_raw():
        body += piece
        if len(body) > MAX_ANSWER_BYTES:
            raise NowcastError(f"the answer is longer than {MAX_ANSWER_BYTES} bytes")
    return bytes(body)


def _read(kind: type[Answer], response: httpx2.Response) -> Answer:
    body = _read_short(response)
    try:
        return kind.model_validate_json(body)
    except ValueError as error:
        raise _not_ours(response) from error


def _read_forecasts(expected: Header, out: Tensor, response: httpx2.Response) -> bool:
    if response.headers.get("content-type") != MEDIA_TYPE:
        _read_short(response)
        return False

    def allocate(header: Header) -> memoryview:
        known = header if expected.horizons else replace(header, horizons=())  # none asked for: the forecaster's own
        if known != expected:
            raise BadFrame(f"asked for {expected}, got {header}", field="header")
        return _bytes_of(out)

    reader = FrameReader(allocate)
    try:
        for piece in response.iter_raw():
            reader.feed(piece)
        reader.close()
    except BadFrame as error:
        raise BadForecast(f"the forecasts cannot be read: {error.detail}", field=error.field) from error
    return True


def _error_of(response: httpx2.Response) -> NowcastError:
    try:
        problem = json.loads(_read_short(response))
    except ValueError:
        problem = None
    code = problem.get("code") if isinstance(problem, dict) else None
    ours = isinstance(code, str) and code != "not_found"  # else a stranger's, or the path is wrong
    error = NowcastError.from_problem(problem) if ours else _not_ours(response)
    with suppress(KeyError, ValueError):
        error.extra.setdefault("retry_after_s", max(0.0, float(response.headers["retry-after"])))
    return error


def _unreached(error: httpx2.ConnectError) -> NowcastError:
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        hint = "the server's certificate is not trusted: name its authority in NOWCAST_SERVER_CA"
    elif "[SSL" in str(error):
        hint = "no HTTPS is spoken at this address: is it http://… ?"
    else:
        return Unavailable(f"no server answers at this address ({error}); `nowcast-server run` starts one")
    return BadRequest(f"{hint} ({error})", field="server")


def _not_ours(response: httpx2.Response) -> NowcastError:
    """Name an answer that is not of the protocol: a proxy's, a login page's, another service's."""
    status, url = response.status_code, response.request.url
    if status >= 500:
        return Unavailable(f"{url} answers {status}; a proxy that does not reach its server?")
    hint = _HINTS.get(status, "is the address right, up to /v1? Does a proxy with a login stand before it?")
    if place := response.headers.get("location"):
        hint = f"it redirects to {place}: give that server's address"
    return BadRequest(f"{url} does not answer as a nowcast server does (status {status}): {hint}", field="server")


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor."""
    array: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return memoryview(array).cast("B")


def _http_client(url: str, *, token: str | None, headers: dict[str, str]) -> httpx2.Client:
    token = (token or "").strip()  # a file ends with a new line
    if token:
        if not (token.isascii() and token.isprintable()):
            raise BadArgument("token", "has a character that no token has")
        headers["authorization"] = f"Bearer {token}"
    address = httpx2.URL()
    with suppress(httpx2.InvalidURL, TypeError):
        address = httpx2.URL(url)
    if address.scheme not in ("http", "https") or not address.host:
        raise BadArgument("server", f"{url!r} is not a URL such as http://127.0.0.1:8440")
    try:
        return httpx2.Client(base_url=url, headers=headers, verify=_verification(), trust_env=trusts_environment(address.host))
    except OSError as error:
        detail = "certificates that NOWCAST_SERVER_CA, NOWCAST_CLIENT_* or SSL_CERT_FILE name cannot be used"
        raise BadArgument("server", f"{detail}: {error}") from error
    except (ImportError, ValueError, httpx2.InvalidURL) as error:
        raise BadArgument("server", f"a proxy of the environment (ALL_PROXY, HTTPS_PROXY) cannot be used: {error}") from error


def trusts_environment(host: str) -> bool:
    """What httpx takes as `trust_env`: not for this machine's own servers, of which a proxy knows nothing."""
    try:
        return not ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"


def _verification() -> ssl.SSLContext | bool:
    """What httpx takes as `verify`: its own authorities or NOWCAST_SERVER_CA's, and NOWCAST_CLIENT_CERT with its key. All PEM."""
    authority, certificate = os.environ.get("NOWCAST_SERVER_CA"), os.environ.get("NOWCAST_CLIENT_CERT")
    if not authority and not certificate:
        return True
    context = ssl.create_default_context(cafile=authority)
    if certificate:
        context.load_cert_chain(certificate, os.environ.get("NOWCAST_CLIENT_KEY"))
    return context
