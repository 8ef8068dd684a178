"""Servers that keep a call waiting: every wait of a worker ends at its deadline."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

from protos.errors import DeadlineExceeded, Unavailable
from protos.messages import JobSpec
from protos.wiring import Block, Parameter, Wiring
from trainer_worker.endpoints.client import HttpEndpoint
from trainer_worker.endpoints.deadline import Deadline

WIRING = Wiring((Parameter("w", (2, 2)),), 4, (Block(1, 0, 2, 2, 2, parameter=0, source_stride=1, target_stride=2),))
PATIENCE_S = 30.0
"""Many times the deadline, for a machine with every core taken; a call that is never ended takes for ever."""


@contextmanager
def server(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """Has each connection served in a thread of its own; the address."""

    def answer(connection: socket.socket) -> None:
        with connection:
            try:
                serve(connection)
            except OSError:
                return

    def listen() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=listen, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def drip_head(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\nx: ")
    while True:
        connection.sendall(b"y")
        time.sleep(0.1)


def endless_continue(connection: socket.socket) -> None:
    connection.recv(65536)
    while True:
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        time.sleep(0.1)


def drip_body(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1000000\r\n\r\n")
    while True:
        connection.sendall(b" ")
        time.sleep(0.1)


def slow_reader(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    while connection.recv(1024):
        time.sleep(0.1)


@pytest.mark.parametrize("serve", [drip_head, endless_continue, drip_body])
def test_a_registration_ends_at_its_deadline(serve: Callable[[socket.socket], None]) -> None:
    """`with Nowcast(...)` would never come to the first training step."""
    with server(serve) as url:
        endpoint, begun = HttpEndpoint(url, job="job"), time.monotonic()
        with pytest.raises(DeadlineExceeded):
            endpoint.register(JobSpec(wiring=WIRING), replace=False, deadline=Deadline(1.0))
        assert time.monotonic() - begun < PATIENCE_S
        endpoint.close()


def test_an_upload_ends_at_its_deadline() -> None:
    """A server that reads a kilobyte now and then would hold up the sender for ever."""
    with server(slow_reader) as url:
        endpoint, begun = HttpEndpoint(url, job="job"), time.monotonic()
        with pytest.raises(DeadlineExceeded):
            endpoint.send(1, torch.zeros(5_000_000), deadline=Deadline(1.0))
        assert time.monotonic() - begun < PATIENCE_S
        endpoint.close()


def test_a_name_that_is_not_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resolver that does not answer would hold up training, as it knows no timeout."""
    answered = threading.Event()

    def resolve(*_: object, **__: object) -> list[object]:
        answered.wait(120)
        return []

    monkeypatch.setattr("trainer_worker.endpoints.http_client.socket.getaddrinfo", resolve)
    endpoint, begun = HttpEndpoint("http://nowhere.invalid", job="job"), time.monotonic()
    with pytest.raises((Unavailable, DeadlineExceeded)):
        endpoint.register(JobSpec(wiring=WIRING), replace=False, deadline=Deadline(1.0))
    assert time.monotonic() - begun < PATIENCE_S
    answered.set()
    endpoint.close()
