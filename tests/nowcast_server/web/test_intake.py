"""Bodies received straight into the history: whatever the network does, the connection and the history stay sound."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPResponse

import pytest
import torch
from server_kit import Caller, Start, dense, frames, until

from nowcast_server.web import intake
from protos.frames import MEDIA_TYPE


@pytest.fixture
def large(listen: Start) -> Caller:
    """A job whose snapshots are larger than what a socket holds at once."""
    caller = listen(wiring=dense(1000, 500))
    assert caller.register().status_code == 201
    return caller


def _put(step: int, body: bytes, *, job: str = "job", **headers: str) -> bytes:
    lines = [
        f"PUT /v1/jobs/{job}/snapshots/{step} HTTP/1.1",
        "host: x",
        f"content-type: {MEDIA_TYPE}",
        f"content-length: {len(body)}",
    ]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


@contextmanager
def _connect(caller: Caller) -> Iterator[socket.socket]:
    url = caller.client.base_url
    with socket.create_connection((url.host, url.port or 0), timeout=20) as connection:
        yield connection


def _answer(connection: socket.socket) -> tuple[int, bytes]:
    response = HTTPResponse(connection)
    response.begin()
    return response.status, response.read()


def _body(caller: Caller, step: int) -> bytes:
    return frames(caller.values(step), step=step, chunk_bytes=100_000)


def _stored(caller: Caller, step: int) -> torch.Tensor:
    history = caller.service.jobs.of("anonymous")[0].history
    context = history.read([step])
    history.release(context)
    return context.states[0]


def test_the_extension_is_offered(large: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """All these tests would be about the plain way."""
    begun = []
    monkeypatch.setattr(intake.Intake, "begin", lambda self: begun.append(self) or self._switch(self))
    assert large.upload(10, _body(large, 10)).status_code == 200
    assert len(begun) == 1


def test_values_arrive_in_place(large: Caller) -> None:
    """Bytes received directly would land beside their place."""
    for step in (10, 20, 30, 40, 50):
        assert large.upload(step, _body(large, step)).status_code == 200
    for step in (30, 40, 50):
        assert torch.equal(_stored(large, step), large.values(step))


@pytest.mark.parametrize("pieces", [[1] * 300 + [10**7], [137] * 2000 + [10**7], [99_999, 3, 10**7]])
def test_however_it_is_cut(large: Caller, pieces: list[int]) -> None:
    """The way the network cuts the body would change what is stored."""
    request = _put(10, _body(large, 10))
    with _connect(large) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for size in pieces:
            connection.sendall(request[:size])
            request = request[size:]
            if size < 100 and len(request) % 7 == 0:
                time.sleep(0.001)
        assert _answer(connection)[0] == 200
    assert torch.equal(_stored(large, 10), large.values(10))


def test_many_requests_on_one_connection(large: Caller) -> None:
    """After a body received past the parser, the next request would be misread."""
    url = large.client.base_url
    connection = HTTPConnection(url.host, url.port or 0)
    for step in (10, 20, 30):
        connection.request("PUT", f"/v1/jobs/job/snapshots/{step}", body=_body(large, step), headers={"content-type": MEDIA_TYPE})
        response = connection.getresponse()
        assert (response.status, json.loads(response.read())["step"]) == (200, step)
        connection.request("GET", "/v1/jobs/job")
        assert json.loads(connection.getresponse().read())["steps"][-1] == step


def test_pipelined_requests(large: Caller) -> None:
    """Requests sent without waiting for answers would be swallowed as part of a body, or answered out of order."""
    ask = b"GET /v1/jobs/job HTTP/1.1\r\nhost: x\r\n\r\n"
    with _connect(large) as connection:
        connection.sendall(_put(10, _body(large, 10)) + ask + _put(20, _body(large, 20)) + ask)
        reader = connection.makefile("rb")
        answers = []
        for _ in range(4):
            length = 0
            while (line := reader.readline().strip()) != b"":
                length = int(line.split(b":")[1]) if line.lower().startswith(b"content-length") else length
            answers.append(json.loads(reader.read(length))["steps"])
    assert answers == [[10], [10], [10, 20], [10, 20]]


def test_a_refused_body_is_thrown_away(large: Caller) -> None:
    """After a refusal in the middle of a body its rest would be read as the next request, or be stored."""
    body = bytearray(_body(large, 10))
    body[150_000] ^= 1  # in the second of twenty chunks
    with _connect(large) as connection:
        for request, status in (
            (_put(10, bytes(body)), 422),
            (_put(10, _body(large, 10), job="nobody"), 404),
            (_put(10, _body(large, 10)), 200),
        ):
            connection.sendall(request)
            assert _answer(connection)[0] == status
    assert large.steps() == [10]
    assert torch.equal(_stored(large, 10), large.values(10))


def test_expect_continue(large: Caller) -> None:
    """A client that asks before it sends would wait for ever, or not be told of a refusal before it has sent everything."""
    body = _body(large, 10)
    with _connect(large) as connection:
        connection.sendall(_put(10, body, expect="100-continue")[: -len(body)])
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert _answer(connection)[0] == 200
    with _connect(large) as connection:
        connection.sendall(_put(20, body, job="nobody", expect="100-continue")[: -len(body)])
        assert _answer(connection)[0] == 404


@pytest.mark.parametrize("cut", [1, 1000, 500_000, -1])
def test_a_client_that_goes(large: Caller, cut: int) -> None:
    """A body that breaks off would leave its row taken, or be stored."""
    (job,) = large.service.jobs.of("anonymous")
    body = _body(large, 10)
    request = _put(10, body)
    for _ in range(6):  # more often than the history has rows
        with _connect(large) as connection:
            connection.sendall(request[: len(request) - len(body) + cut] if cut > 0 else request[:cut])
            until(lambda: job.users)
        until(lambda: not job.users)
    assert not job.history.in_use
    assert large.steps() == []
    assert large.upload(10, body).status_code == 200


def test_a_connection_that_stalls(listen: Start) -> None:
    """A client that stops in the middle of a body would keep its row and its connection."""
    caller = listen(wiring=dense(1000, 500), upload_grace_s=0.3, upload_min_rate=10**9)
    caller.register()
    body = _body(caller, 10)
    with _connect(caller) as connection:
        connection.sendall(_put(10, body)[:-1000])
        status, answer = _answer(connection)
        assert (status, json.loads(answer)["code"]) == (504, "deadline_exceeded")
        assert connection.recv(1) == b""  # hung up
    assert not caller.service.jobs.of("anonymous")[0].history.in_use
    assert caller.upload(10, body).status_code == 200


def test_without_the_extension(large: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """On another server than ours nothing would be received, or something else."""
    monkeypatch.setattr(intake, "_declared_length", lambda _: 0)
    assert large.upload(10, _body(large, 10)).status_code == 200
    assert torch.equal(_stored(large, 10), large.values(10))
