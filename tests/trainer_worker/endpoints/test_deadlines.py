"""Servers that keep a call waiting: every wait of a worker ends at its deadline."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from socketserver import BaseRequestHandler, ThreadingTCPServer

import pytest
import torch
from cut_network import Listening
from small_runs import adam, make, network

from protos.errors import DeadlineExceeded, Unavailable
from protos.messages import JobSpec
from protos.wiring import Block, Parameter, Wiring
from trainer_worker.endpoints import sender
from trainer_worker.endpoints.client import HttpEndpoint
from trainer_worker.endpoints.endpoint import Deadline

WIRING = Wiring((Parameter("w", (2, 2)),), 4, (Block(1, 0, 2, 2, 2, parameter=0, source_stride=1, target_stride=2),))
PATIENCE_S = 30.0
"""Many times the deadline, for a machine with every core taken; a call that is never ended takes for ever."""


@contextmanager
def endpoint_of(serve: Callable[[socket.socket], None]) -> Iterator[HttpEndpoint]:
    """At a server that has each connection served in a thread of its own."""

    class Handler(BaseRequestHandler):
        def handle(self) -> None:
            with suppress(OSError):
                serve(self.request)

    listening = Listening(ThreadingTCPServer(("127.0.0.1", 0), Handler))
    with closing(listening), closing(HttpEndpoint(listening.url, job="job")) as endpoint:
        yield endpoint


def dripping(begin: bytes, drop: bytes) -> Callable[[socket.socket], None]:
    """Begins an answer, and goes on with it a drop at a time, without end."""

    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(begin)
        while True:
            connection.sendall(drop)
            time.sleep(0.1)

    return serve


HEAD = dripping(b"HTTP/1.1 200 OK\r\nx: ", b"y")
CONTINUE = dripping(b"", b"HTTP/1.1 100 Continue\r\n\r\n")
BODY = dripping(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1000000\r\n\r\n", b" ")


def slow_reader(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    while connection.recv(1024):
        time.sleep(0.1)


@pytest.mark.parametrize("serve", [HEAD, CONTINUE, BODY, slow_reader])
def test_a_call_ends_at_its_deadline(serve: Callable[[socket.socket], None]) -> None:
    """`with Nowcast(...)` would never come to the first training step, or the sender be held up for ever by a slow reader."""
    with endpoint_of(serve) as endpoint:
        begun, register = time.monotonic(), partial(endpoint.register, JobSpec(wiring=WIRING), replace=False)
        call: Callable[..., object] = partial(endpoint.send, 1, torch.zeros(5_000_000)) if serve is slow_reader else register
        with pytest.raises(DeadlineExceeded):
            call(deadline=Deadline(0.3))
        assert time.monotonic() - begun < PATIENCE_S


def busy(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 503 Busy\r\nretry-after: 60\r\ncontent-length: 0\r\n\r\n")


@pytest.mark.parametrize(
    ("serve", "closes", "error"), [(BODY, False, DeadlineExceeded), (BODY, True, Unavailable), (busy, False, DeadlineExceeded)]
)
def test_what_nobody_waits_for_any_more_ends_at_once(
    serve: Callable[[socket.socket], None], *, closes: bool, error: type[Exception]
) -> None:
    """A late answer would keep the server at work until its deadline; or a run end, and its thread wait for a server that hangs, or
    to be let in.
    """
    with endpoint_of(serve) as endpoint:
        deadline, begun = Deadline(1000.0), time.monotonic()
        threading.Timer(0.2, endpoint.close if closes else deadline.expire).start()
        with pytest.raises(error):
            endpoint.register(JobSpec(wiring=WIRING), replace=False, deadline=deadline)
        assert time.monotonic() - begun < PATIENCE_S


def test_a_name_that_is_not_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resolver that does not answer would hold up training, as it knows no timeout."""
    answered = threading.Event()

    def resolve(*_: object, **__: object) -> list[object]:
        answered.wait(120)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(sender, "OPEN_S", 0.2)
    monkeypatch.setattr(sender, "STOP_S", 0.1)
    model, begun = network(), time.monotonic()
    with make(model, adam(model), "http://nowhere.invalid"):
        assert time.monotonic() - begun < PATIENCE_S
    answered.set()
