"""Connections, lines and headers, which come before any token: what they may take of memory and of time."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import pytest
from server_kit import NOWCAST, TOKENS, Held, Start, answer, frames, request, until

from nowcast_server.web import connections
from nowcast_server.web.connections import MAX_HEAD_BYTES
from protos.frames import MEDIA_TYPE

OPENING = b"GET /livez HTTP/1.1\r\nhost: x\r\n"
LIVE = OPENING + b"\r\n"
WITH_BODY = OPENING + b"content-length: 200000\r\n\r\n"


def _status(connection: socket.socket, sent: bytes = b"") -> int:
    """Of the next answer, once this is sent."""
    return answer(connection, sent)[0].status


def _live(size: int, *, headers: int = 1) -> bytes:
    """A request of so many bytes."""
    short = b"a: b\r\n" * (headers - 1)
    return OPENING + short + b"z: " + b"z" * (size - len(OPENING) - len(short) - 7) + b"\r\n\r\n"


@pytest.mark.parametrize("headers", [1, 10_000])
def test_a_head_has_a_limit(listen: Start, headers: int) -> None:
    """Whoever reaches the port, without a token, could fill the memory with headers that never end."""
    caller = listen()
    with caller.connect() as connection:
        assert _status(connection, _live(MAX_HEAD_BYTES, headers=headers)) == 200
        assert _status(connection, _live(MAX_HEAD_BYTES + 1, headers=headers)[:-1]) == 431
        assert connection.recv(1) == b""  # hung up


def test_nothing_is_said_within_an_answer(listen: Start) -> None:
    """A refusal in the middle of an answer would be read as a part of it."""
    with listen().connect() as connection:
        put = b"PUT /v1/jobs/job HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        connection.sendall(put + b"expect: 100-continue\r\ntransfer-encoding: chunked\r\n\r\n")
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"0\r\nz: ".ljust(MAX_HEAD_BYTES, b"z"))
        assert connection.recv(100) == b""


def test_each_head_is_counted_by_itself(listen: Start) -> None:
    """A connection would be cut off for what its earlier requests had, headers or bodies."""
    with listen().connect() as connection:
        for _ in range(3):
            assert _status(connection, _live(MAX_HEAD_BYTES // 2 + 1)) == 200
            assert _status(connection, WITH_BODY + b"a" * 200_000) == 200
        connection.sendall(_live(MAX_HEAD_BYTES // 3 * 2) * 3)
        received = b""
        while received.count(b"HTTP/1.1 200 OK") < 3:
            received += connection.recv(65536) or pytest.fail("hung up")


@pytest.mark.parametrize(
    ("answered", "then"),
    [(b"", b""), (b"", b"GET"), (b"", OPENING), (LIVE, OPENING), (LIVE, b"\r\n"), (WITH_BODY, b"a"), (WITH_BODY, b"a" * 200_000)],
    ids=["nothing", "a word", "a line", "a second line", "an empty line", "half a body", "a body"],
)
def test_a_connection_that_asks_for_nothing_ends(
    listen: Start, monkeypatch: pytest.MonkeyPatch, answered: bytes, then: bytes
) -> None:
    """A thousand idle connections, without a token, would leave the server none for those who have one."""
    caller = listen()
    monkeypatch.setattr(connections, "REFUSED_S", 0.3)
    if not answered:
        monkeypatch.setattr(connections, "HEAD_S", 0.3)
    with caller.connect() as connection:
        if answered:
            assert _status(connection, answered) == 200
            monkeypatch.setattr(connections, "HEAD_S", 0.3)
        connection.sendall(then)
        assert connection.recv(1) == b""


def test_a_connection_that_rests_between_requests_stays(listen: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker would connect anew for each snapshot."""
    caller = listen()
    with caller.connect() as connection:
        for _ in range(3):
            assert _status(connection, LIVE) == 200
            monkeypatch.setattr(connections, "HEAD_S", 0.3)
            time.sleep(0.6)


def test_a_slow_body_and_a_slow_answer_are_waited_for(listen: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uploads and forecasts that take longer than a line and headers may would be cut off."""
    held = Held()
    caller = listen(held)
    assert caller.register().status_code == 201
    caller.fill(10, 20)
    put = request("PUT", "/v1/jobs/job/snapshots/30", frames(caller.values(30), step=30), content_type=MEDIA_TYPE)
    with caller.connect() as connection, ThreadPoolExecutor(1) as pool:
        assert _status(connection, LIVE) == 200
        monkeypatch.setattr(connections, "HEAD_S", 0.3)
        for call in (put, NOWCAST):
            connection.sendall(call[:-20])
            time.sleep(0.6)
            status = pool.submit(_status, connection, call[-20:])
            if call is NOWCAST:
                assert held.begun.acquire(timeout=60)
                time.sleep(0.6)
                held.released.set()
            assert status.result() == 200


UPLOAD = b"PUT /v1/jobs/mine/snapshots/8 HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"


def _fails(connection: socket.socket, data: bytes) -> bool:
    """Has the other side hung up?"""
    try:
        connection.sendall(data)
    except OSError:
        return True
    return False


def test_a_refused_body_that_drips_has_an_end(listen: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then would hold a connection for ever, without a token."""
    caller = listen()
    monkeypatch.setattr(connections, "REFUSED_S", 0.5)
    with caller.connect() as connection:
        assert _status(connection, UPLOAD % 1000) == 404
        until(lambda: _fails(connection, b"x"))


@pytest.mark.parametrize("tokens", [{}, {"tokens": TOKENS}])
def test_a_long_refused_body_is_not_swallowed(listen: Start, tokens: dict[str, str]) -> None:
    """A call that was answered 401 could go on to send 100 GB."""
    with listen(**tokens).connect() as connection:
        response, _ = answer(connection, UPLOAD % 10**11 + b"x" * 1000)
        assert (response.status, response.headers["connection"]) == (401 if tokens else 404, "close")
        assert connection.recv(1) == b""


@pytest.mark.parametrize("limit", ["max_connections", "peer_connections"])
def test_the_longest_idle_connection_makes_room(listen: Start, limit: str) -> None:
    """Idle connections, without a token, would keep everybody else out; or one machine have all the connections there are."""
    caller = listen(**{limit: 10})
    with ExitStack() as stack:
        idle = [stack.enter_context(caller.connect()) for _ in range(30)]
        for connection in idle[:15]:
            with suppress(ConnectionResetError):
                assert connection.recv(1) == b""  # ended to make room
        with caller.connect() as late:
            assert _status(late, LIVE) == 200
        assert _status(idle[-1], LIVE) == 200


def test_health_is_reachable_when_all_connections_are_busy(listen: Start) -> None:
    """A server at its limit would be killed by its orchestrator, with all histories."""
    held = Held()
    caller = listen(held, max_connections=4).filled()  # its own connection is one of them
    with ExitStack() as stack:
        busy = []
        for index in range(4):
            busy.append(stack.enter_context(caller.connect()))
            busy[-1].sendall(NOWCAST)
            until(lambda index=index: caller.service.device.waiting == index)  # type: ignore[misc]
        assert held.begun.acquire(timeout=60)
        with caller.connect() as probe:
            assert _status(probe, LIVE) == 200
        with caller.connect() as other:
            assert _status(other, b"GET /v1/info HTTP/1.1\r\nhost: x\r\n\r\n") == 503
        held.released.set()
        assert [_status(connection) for connection in busy] == [200] * 4


def test_probes_of_any_kind(start: Start) -> None:
    """A load balancer or uptime monitor that asks by HEAD or OPTIONS would take a healthy server out."""
    client = start().client
    for path in ("/livez", "/readyz", "/", "/metrics"):
        head = client.head(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"] == client.get(path).headers["content-type"]
    assert [client.options(path).status_code for path in ("/livez", "/readyz")] == [200, 200]
