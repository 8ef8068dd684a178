"""What connections may cost before a token is looked at, by hooks into uvicorn's protocol: number, waiting, refused bodies."""

import asyncio
from collections import Counter, defaultdict
from ipaddress import IPv6Address, ip_address
from typing import Any, ClassVar, Final

from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from nowcast_server.web.problems import REFUSED_BYTES, problem_response
from protos.errors import Unavailable

MAX_HEAD_BYTES: Final = 64 * 1024  # of a request's line and headers, or a body's trailers; up to twice that right after another
HEAD_S: Final = 30.0  # to bring a line and headers; from an answer to the next byte uvicorn's keep-alive counts instead
REFUSED_S: Final = 10.0  # a body that was refused has so long to come, however it drips
SPARE: Final = 64  # connections beyond the limit, for calls of `HEALTH` alone, when all others are being answered
HEALTH: Final = frozenset({"/livez", "/readyz"})


class Connections:
    """The open connections of a server. One more than may be ends the one that has been idle longest. Idle is a connection on which
    no call is being answered: that rests between two, brings a head or a refused body, or nothing. `peer_limit` is of one address
    (for IPv6, of one /64).
    """

    def __init__(self, limit: int, peer_limit: int) -> None:
        self._limit, self._peer_limit = limit, peer_limit
        self._open: Counter[str] = Counter()
        self._idle: defaultdict[str, dict[LimitedProtocol, None]] = defaultdict(dict)  # the longest idle first

    def __len__(self) -> int:
        return self._open.total()

    @property
    def full(self) -> bool:
        """Not even a call of `HEALTH` finds room."""
        return len(self) > self._limit + SPARE

    def opened(self, connection: "LimitedProtocol") -> bool:
        """Count a connection, which is idle yet; False if it is one too many and all others are being answered."""
        peer = over = connection.peer
        self._open[peer] += 1
        within = self._open[peer] <= self._peer_limit
        if within and len(self) > self._limit:
            within = False
            over = max((each for each, idle in self._idle.items() if idle), key=self._open.__getitem__, default=peer)
        if not within and (victim := next(iter(self._idle[over]), None)) is not None:
            within = True
            self.busy(victim)
            victim.transport.abort()
        self._idle[peer][connection] = None
        return within

    def busy(self, connection: "LimitedProtocol") -> None:
        """A call is being answered on it."""
        self._idle[connection.peer].pop(connection, None)

    def rests(self, connection: "LimitedProtocol") -> None:
        """It is idle again, from now on."""
        self._idle[connection.peer].pop(connection, None)
        self._idle[connection.peer][connection] = None

    def closed(self, connection: "LimitedProtocol") -> None:
        peer = connection.peer
        self._idle[peer].pop(connection, None)
        self._open[peer] -= 1
        if self._open[peer] <= 0:
            del self._open[peer]
            self._idle.pop(peer, None)


async def _no_room(scope: Scope, receive: Receive, send: Send) -> None:
    answer = problem_response(Unavailable("too many connections; try again", retry_after_s=5), hang_up=True)
    await answer(scope, receive, send)


class LimitedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, within limits."""

    limits: ClassVar[Connections]
    peer = ""
    _head_bytes = 0  # since the last headers, piece of a body or end of a request
    _body_left = 0  # of the body that is coming; chunked ones have no end
    _late: asyncio.TimerHandle | None = None
    _within = True

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self.peer = _peer(transport)
        self._within = self.limits.opened(self)
        self._wait(HEAD_S if self._within else REFUSED_S)
        if self.limits.full:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._came()
        self.limits.closed(self)

    def data_received(self, data: bytes) -> None:
        while data and not self.transport.is_closing():
            left = MAX_HEAD_BYTES - self._head_bytes
            piece, data = data[:left], data[left:]
            self._head_bytes += len(piece)
            super().data_received(piece)
            if self._head_bytes == MAX_HEAD_BYTES:
                self._refuse()
        if self._late is None and not self._answering:
            self._wait(HEAD_S)

    def on_headers_complete(self) -> None:
        self._came()
        self._head_bytes, self._body_left = 0, _declared(self.headers)
        self.limits.busy(self)
        app, path = self.app, self.url.partition(b"?")[0].decode("ascii", "replace")
        if not self._within and path not in HEALTH:
            self.app = _no_room
        super().on_headers_complete()
        self.app = app

    def on_body(self, body: bytes) -> None:
        self._head_bytes = 0
        self._body_left -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._head_bytes, self._body_left = 0, 0
        if not self._answering:
            self._came()  # a refused body is over
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing() or self._answering:
            return
        self.limits.rests(self)
        if self._body_left > REFUSED_BYTES:
            self.transport.close()
        elif self._body_left:
            self._wait(REFUSED_S)

    def _wait(self, seconds: float) -> None:
        """End the connection after so long, whatever comes, unless `_came` is called."""
        if self._late is None:
            self._late = self.loop.call_later(seconds, self.transport.close)

    def _came(self) -> None:
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


def protocol_for(connections: Connections) -> type[LimitedProtocol]:
    """The protocol of a server with these connections."""
    return type("HttpProtocol", (LimitedProtocol,), {"limits": connections})


def _peer(transport: asyncio.Transport) -> str:
    """Whose connection it is; empty on a Unix socket."""
    name: Any = transport.get_extra_info("peername")
    if not isinstance(name, tuple):
        return ""
    address = ip_address(str(name[0]).partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped is None:
        return str(IPv6Address(int(address) >> 64 << 64))
    return str(address)


def _declared(headers: list[tuple[bytes, bytes]]) -> int:
    """Length of the body, by the headers, which the parser has checked; longer than any for a chunked one."""
    given = dict(headers)
    return 2**62 if b"transfer-encoding" in given else int(given.get(b"content-length", 0))
