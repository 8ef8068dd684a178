"""Limits to what precedes a body: a request's line and headers, which are in memory before the app, and so a token, has a say."""

import asyncio
from typing import Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

MAX_HEAD_BYTES: Final = 64 * 1024
"""Of a request's line and headers, and of a body's trailers. One sent along with the request before may have up to twice that."""
HEAD_S: Final = 30.0
"""While nothing is being answered, a connection has so long to bring a whole line and headers, or more of a body that was refused.
From an answer to the next byte uvicorn's keep-alive counts instead, also while an `Intake` throws a body away."""


class LimitedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which ends connections whose line and headers have no end."""

    _head_bytes = 0  # since the last headers, piece of a body or end of a request
    _late: asyncio.TimerHandle | None = None

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._came()

    def data_received(self, data: bytes) -> None:
        while data and not self.transport.is_closing():
            left = MAX_HEAD_BYTES - self._head_bytes
            piece, data = data[:left], data[left:]
            self._head_bytes += len(piece)
            super().data_received(piece)
            if self._head_bytes == MAX_HEAD_BYTES:
                self._refuse()
        if self._late is None and not self._answering:
            self._wait()

    def on_headers_complete(self) -> None:
        self._came()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._came()
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._came()
        super().on_message_complete()

    def _wait(self) -> None:
        self._late = self.loop.call_later(HEAD_S, self.transport.close)

    def _came(self) -> None:
        """What comes next is counted and timed anew."""
        self._head_bytes = 0
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _refuse(self) -> None:
        self.logger.warning("Request line and headers of more than %d bytes received.", MAX_HEAD_BYTES)
        if not self._answering:  # else it would stand in the middle of an answer
            text = b"The request line and headers may have %d bytes: send fewer or shorter headers.\n" % MAX_HEAD_BYTES
            about = b"content-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(text)
            self.transport.write(STATUS_LINE[431] + about + text)
        self.transport.close()
