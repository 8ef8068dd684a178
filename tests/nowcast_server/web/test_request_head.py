"""Lines and headers of requests, which come before any token: what they may take of memory and of time."""

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPResponse

import pytest
from server_kit import Caller, Held, Start, frames

from nowcast_server.web import request_head
from nowcast_server.web.request_head import MAX_HEAD_BYTES
from protos.frames import MEDIA_TYPE

OPENING = b"GET /livez HTTP/1.1\r\nhost: x\r\n"
LIVE = OPENING + b"\r\n"
WITH_BODY = OPENING + b"content-length: 200000\r\n\r\n"


@contextmanager
def _connect(caller: Caller) -> Iterator[socket.socket]:
    url = caller.client.base_url
    with socket.create_connection((url.host, url.port or 0), timeout=10) as connection:
        yield connection


def _status(connection: socket.socket, request: bytes = b"") -> int:
    """Of the next answer, once the request is sent."""
    connection.sendall(request)
    response = HTTPResponse(connection)
    response.begin()
    response.read()
    return response.status


def _live(size: int, *, headers: int = 1) -> bytes:
    """A request of so many bytes."""
    short = b"a: b\r\n" * (headers - 1)
    return OPENING + short + b"z: " + b"z" * (size - len(OPENING) - len(short) - 7) + b"\r\n\r\n"


@pytest.mark.parametrize("headers", [1, 10_000])
def test_a_head_has_a_limit(listen: Start, headers: int) -> None:
    """Whoever reaches the port, without a token, could fill the memory with headers that never end."""
    caller = listen()
    with _connect(caller) as connection:
        assert _status(connection, _live(MAX_HEAD_BYTES, headers=headers)) == 200
        assert _status(connection, _live(MAX_HEAD_BYTES + 1, headers=headers)[:-1]) == 431
        assert connection.recv(1) == b""  # hung up


def test_trailers_have_it_too(listen: Start) -> None:
    """Headers after a body would do what those before it cannot."""
    with _connect(listen()) as connection:
        chunked = OPENING + b"transfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n"
        assert _status(connection, chunked) == 200
        connection.sendall(b"z: " + b"z" * (MAX_HEAD_BYTES - 3))
        assert _status(connection) == 431


def test_nothing_is_said_within_an_answer(listen: Start) -> None:
    """A refusal in the middle of an answer would be read as a part of it."""
    with _connect(listen()) as connection:
        put = b"PUT /v1/jobs/job HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        connection.sendall(put + b"expect: 100-continue\r\ntransfer-encoding: chunked\r\n\r\n")
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"0\r\nz: ".ljust(MAX_HEAD_BYTES, b"z"))
        assert connection.recv(100) == b""


def test_each_head_is_counted_by_itself(listen: Start) -> None:
    """A connection would be cut off for what its earlier requests had, headers or bodies."""
    with _connect(listen()) as connection:
        for _ in range(3):
            assert _status(connection, _live(MAX_HEAD_BYTES // 2 + 1)) == 200
            assert _status(connection, WITH_BODY + b"a" * 200_000) == 200
        connection.sendall(_live(MAX_HEAD_BYTES // 3 * 2) * 3)
        received = b""
        while received.count(b"HTTP/1.1 200 OK") < 3:
            received += connection.recv(65536) or pytest.fail("hung up")


@pytest.mark.parametrize(
    ("answered", "then"),
    [
        (b"", b""),
        (b"", b"GET"),
        (b"", OPENING),
        (LIVE, OPENING),
        (LIVE, b"\r\n"),
        (WITH_BODY, b"a"),
        (WITH_BODY, b"a" * 200_000),
    ],
    ids=["nothing", "a word", "a line", "a second line", "an empty line", "half a body", "a body"],
)
def test_a_connection_that_asks_for_nothing_ends(
    listen: Start, monkeypatch: pytest.MonkeyPatch, answered: bytes, then: bytes
) -> None:
    """A thousand idle connections, without a token, would leave the server none for those who have one."""
    caller = listen()
    monkeypatch.setattr(request_head, "HEAD_S", 0.3)
    with _connect(caller) as connection:
        if answered:
            assert _status(connection, answered) == 200
        connection.sendall(then)
        assert connection.recv(1) == b""


def test_a_connection_that_rests_between_requests_stays(listen: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker would connect anew for each snapshot."""
    caller = listen()
    monkeypatch.setattr(request_head, "HEAD_S", 0.3)
    with _connect(caller) as connection:
        for _ in range(3):
            assert _status(connection, LIVE) == 200
            time.sleep(0.6)


def test_a_slow_body_and_a_slow_answer_are_waited_for(listen: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uploads and forecasts that take longer than a line and headers may would be cut off."""
    held = Held()
    caller = listen(held)
    monkeypatch.setattr(request_head, "HEAD_S", 0.3)
    assert caller.register().status_code == 201
    caller.fill(10, 20)
    body = frames(caller.values(30), step=30)
    put = f"PUT /v1/jobs/job/snapshots/30 HTTP/1.1\r\nhost: x\r\ncontent-type: {MEDIA_TYPE}\r\n".encode()
    ask = b'{"context": [10, 20, 30], "horizons": [1]}'
    post = b"POST /v1/jobs/job/nowcasts HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    with _connect(caller) as connection, ThreadPoolExecutor(1) as pool:
        for head, half, rest in ((put, body[:50], body[50:]), (post, ask[:5], ask[5:])):
            connection.sendall(head + b"content-length: %d\r\n\r\n" % (len(half) + len(rest)) + half)
            time.sleep(0.6)
            answer = pool.submit(_status, connection, rest)
            if head is post:
                assert held.begun.acquire(timeout=10)
                time.sleep(0.6)
                held.released.set()
            assert answer.result() == 200
