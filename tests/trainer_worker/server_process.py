"""A real server in a process of its own."""

import signal
import socket
import subprocess
import sys

from waiting import until

from nowcast_server.healthcheck import check
from nowcast_server.settings import Settings

CHECKPOINTS = {"nino": "nino_no_posw.pt", "wnn": "nino_mlp.pt"}
"""The published weights that the fixture `server` has in place of the package's, in ../shared."""


class ServerProcess:
    """A real `nowcast-server run` on a port of its own, to be killed and started again."""

    def __init__(self, *options: str) -> None:
        # bound for good and never listening: the server, which reuses addresses, can take the port, and nobody else
        self._held = socket.socket()
        self._held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._held.bind(("127.0.0.1", 0))
        self.port = self._held.getsockname()[1]
        self.options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it and wait until it is ready."""
        command = [sys.executable, "-m", "nowcast_server", "run", "--port", str(self.port), *self.options]
        process = self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(lambda: process.poll() is not None or check(Settings(port=self.port)) is None)
        assert process.poll() is None, "the server ended"

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal: SIGSTOP makes it hang, SIGKILL ends it without a goodbye."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
