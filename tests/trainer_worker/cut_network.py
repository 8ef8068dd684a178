"""A TCP proxy that cuts, holds up and slows down what passes, as told."""

import select
import socket
import threading
import time
from contextlib import suppress
from http.server import ThreadingHTTPServer
from socketserver import BaseRequestHandler, ThreadingTCPServer

PIECE_BYTES = 512
"""Passed on at once: small, so that a cut falls into the middle of things."""


class Listening:
    """Something that listens on loopback, in a thread of its own."""

    def __init__(self, listener: ThreadingTCPServer | ThreadingHTTPServer) -> None:
        self.listener = listener
        listener.daemon_threads = True
        self._thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()
        self.port = int(listener.server_address[1])
        self.url = f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        self.listener.shutdown()
        self.listener.server_close()
        self._thread.join()


class CutNetwork(Listening):
    """Stands between a worker and the server at this port of loopback."""

    def __init__(self, port: int) -> None:
        self.target = ("127.0.0.1", port)
        self._cuts = 0
        self._down_until = self._held_until = self._slow_until = 0.0
        super().__init__(ThreadingTCPServer(("127.0.0.1", 0), type("Handler", (_Connection,), {"network": self})))

    def cut(self, *, down_s: float = 0.0) -> None:
        """End all connections in the middle of whatever they carry, and take none for a while."""
        self._cuts += 1
        self._down_until = time.monotonic() + down_s

    def hold(self, seconds: float) -> None:
        """Let nothing pass for a while: packets are lost, or the server is paused."""
        self._held_until = time.monotonic() + seconds

    def slow(self, seconds: float) -> None:
        """Let little pass for a while."""
        self._slow_until = time.monotonic() + seconds

    def close(self) -> None:
        super().close()
        self.cut()


class _Connection(BaseRequestHandler):
    network: CutNetwork

    def handle(self) -> None:
        network = self.network
        if time.monotonic() < network._down_until:
            return
        with suppress(OSError), socket.create_connection(network.target) as upstream:
            self._pass(upstream, cuts=network._cuts)

    def _pass(self, upstream: socket.socket, *, cuts: int) -> None:
        network = self.network
        other = {self.request: upstream, upstream: self.request}
        while network._cuts == cuts:
            for end in select.select(list(other), [], [], 0.005)[0]:
                while time.monotonic() < network._held_until and network._cuts == cuts:
                    time.sleep(0.002)
                data = end.recv(PIECE_BYTES)
                if not data:
                    return
                other[end].sendall(data)
                if time.monotonic() < network._slow_until:
                    time.sleep(0.005)
