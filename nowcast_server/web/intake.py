"""Bodies received straight into their place, for uvicorn: one copy, from the kernel into the history.

Starlette's `request.stream()` hands over a body in pieces of bytes, which uvicorn copies three times on their way. For a body of
declared length this protocol offers the app an ASGI extension instead: `scope["extensions"]["nowcast.receive_into"]`, to be awaited
with a sink. While the body comes, the connection belongs to an `Intake`, which reads from the socket into the sink's own memory.
Without the extension (another server, TestClient, Ray Serve) the app streams; the result is the same.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, Protocol

import httptools
from starlette.requests import ClientDisconnect
from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from nowcast_server.web.request_head import LimitedProtocol

EXTENSION: Final = "nowcast.receive_into"
_REFUSE_BYTES: Final = 256 * 1024


class Sink(Protocol):
    """Takes in a body."""

    def feed(self, data: bytes) -> None:
        """Take in bytes that came before the sink did."""

    def window(self) -> memoryview:
        """Memory for the next bytes, never empty."""

    def advance(self, received: int) -> None:
        """So many bytes are in the window."""


ReceiveInto = Callable[[Sink], Awaitable[None]]


def receive_into(scope: Scope) -> ReceiveInto | None:
    """The extension, if this request has it. What the sink raises comes out of it; `ClientDisconnect` if the body breaks off."""
    offered: ReceiveInto | None = scope.get("extensions", {}).get(EXTENSION)
    return offered


class HttpProtocol(LimitedProtocol):
    """uvicorn's protocol with the extension."""

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        length = _declared_length(self.headers)
        if length and not self.pipeline:  # the task that runs the app has not begun yet
            offered: dict[str, Any] = {EXTENSION: partial(self._receive_into, self.cycle, length)}
            self.scope["extensions"] = offered

    async def _receive_into(self, cycle: RequestResponseCycle, length: int, sink: Sink) -> None:
        came, cycle.body = bytes(cycle.body), bytearray()
        if cycle.disconnected:
            raise ClientDisconnect
        if cycle.waiting_for_100_continue:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            cycle.waiting_for_100_continue = False
        intake = Intake(self, sink, left=length - len(came))
        try:
            sink.feed(came)
            if intake.left:
                intake.begin()
                await intake.done
        finally:
            intake.refuse()

    def body_is_over(self) -> None:
        """Read on where the body ended: its bytes went past the parser, so a new one takes over."""
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.on_message_complete()


class Intake(asyncio.BufferedProtocol):
    """Has the connection for the rest of one body.

    Args:
        http: whose connection it is.
        sink: that takes the body in.
        left: bytes of the body still to come.
    """

    def __init__(self, http: HttpProtocol, sink: Sink, *, left: int) -> None:
        self.left = left
        self.done: asyncio.Future[None] = http.loop.create_future()
        self._http = http
        self._sink: Sink | None = sink

    def begin(self) -> None:
        self._switch(self)

    def refuse(self) -> None:
        """Throw away whatever still comes, so that the client reads its answer and the connection can be used again."""
        self._sink = None

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 -- asyncio
        window = self._sink.window() if self._sink is not None else memoryview(bytearray(_REFUSE_BYTES))
        return window[: self.left]

    def buffer_updated(self, nbytes: int) -> None:
        self.left -= nbytes
        if self._sink is not None:
            try:
                self._sink.advance(nbytes)
            except Exception as error:  # noqa: BLE001 -- it is the app's
                self.refuse()
                self.done.set_exception(error)
        if not self.left:
            self._http.transport.pause_reading()  # until the parser is back, the next request must wait
            self._http.loop.call_soon(self._end)

    def _end(self) -> None:
        if self._http.transport.is_closing():
            return
        self._http.body_is_over()
        self._switch(self._http)
        if not self.done.done():
            self.done.set_result(None)

    def _switch(self, protocol: asyncio.BaseProtocol) -> None:
        transport = self._http.transport
        transport.pause_reading()
        transport.set_protocol(protocol)
        self._http.flow.read_paused = True
        self._http.flow.resume_reading()

    def eof_received(self) -> Any:
        return self._http.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._http.connection_lost(exc)
        if not self.done.done():
            self.done.set_exception(ClientDisconnect())

    def pause_writing(self) -> None:
        self._http.pause_writing()

    def resume_writing(self) -> None:
        self._http.resume_writing()


def _declared_length(headers: list[tuple[bytes, bytes]]) -> int:
    """The content-length, which the parser has checked; 0 if there is none."""
    lengths = [int(value) for name, value in headers if name == b"content-length"]
    chunked = any(name == b"transfer-encoding" for name, _ in headers)
    return 0 if chunked or not lengths else lengths[0]
