"""Clients that mean harm, for `bench/soak.py`."""

import http.client
import json
import random
import socket
import time
import tomllib
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path

import torch

from protos.frames import MEDIA_TYPE, Header, write_frames

INPUTS = Path(__file__).parent.parent / "tests" / "hostile"


class Attack:
    """One client that means harm to the server on a port of this machine.

    Args:
        token: its tenant's.
        seed: of what it does next.
    """

    def __init__(self, port: int, *, token: str, seed: int) -> None:
        self.port, self.token, self.draw = port, token, random.Random(seed)
        self.answers = Counter[int]()

    def run(self, until: float) -> Counter[int]:
        """One attack after the other; how often it was answered by each status, 0 for not at all."""
        torch.set_num_threads(1)
        while time.time() < until:
            self.draw.choice((self.inputs, self.drips, self.registrations, self.chain, self.slow_reader))()
        return self.answers

    def send(self, method: str, path: str, body: bytes = b"", *, kind: str = "application/json", **stay: float) -> None:
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {self.token}\r\nContent-Type: {kind}"
        self.raw(f"{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body, **stay)

    def raw(self, request: bytes, *, patience_s: float = 20, hold_s: float = 0) -> None:
        """Wait for an answer's head, then stay without reading more."""
        status = 0
        with suppress(OSError, http.client.HTTPException), socket.create_connection(("127.0.0.1", self.port), 5) as connection:
            connection.settimeout(patience_s)
            with suppress(OSError):
                connection.sendall(request)
            response = http.client.HTTPResponse(connection)
            response.begin()
            status = response.status
            time.sleep(hold_s)
        self.answers[status] += 1

    def inputs(self) -> None:
        """Some of those of the tests."""
        for path in self.draw.sample(sorted(INPUTS.glob("*.toml")), 20):
            given = tomllib.loads(path.read_text())
            body = bytes.fromhex(given.get("body_hex", "")) + given.get("body", "").encode()
            body += bytes.fromhex(given.get("repeat", "")) * given.get("times", 0)
            if "raw" in given:
                self.raw(given["raw"].encode("latin-1"), patience_s=2)
            else:
                self.send(given["method"], given["path"], body, kind=given["headers"].get("content-type", "text/plain"))

    def drips(self) -> None:
        """Half heads, and bodies that are refused, a byte now and then."""
        upload = b"PUT /v1/jobs/x/snapshots/8 HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n"
        with ExitStack() as stack, suppress(OSError):
            held = [stack.enter_context(socket.create_connection(("127.0.0.1", self.port), 5)) for _ in range(200)]
            for data in (self.draw.choice((upload, b"GET / HTTP/1.1\r\nX: " + b"y" * 30_000)), b"x", b"x", b"x"):
                for connection in held:
                    with suppress(OSError):
                        connection.sendall(data)
                time.sleep(2)

    def registrations(self) -> None:
        """One of nearly as many bytes as may be, and one of more memory than there is."""
        rows = [[10, i % 990, 1, (i * 7) % 990, 1, 0, -1, 0, 0, 0, 1, 0] for i in range(90_000)]
        wide = [1, 0, 31_000, 31_000, 31_000, 0, 0, 0, 1, 31_000, 1, 0]
        for shape, neurons, blocks in (([1000], 1000, rows), ([31_000, 31_000], 62_000, [wide])):
            wiring = {"parameters": [["w", shape]], "neurons": neurons, "blocks": blocks}
            self.send("PUT", "/v1/jobs/large", json.dumps({"wiring": wiring}).encode())

    def chain(self) -> None:
        """A graph whose features take long, and nobody waits for the forecast."""
        self.forecast(20_000, [[1, 0, 20_000, 1, 20_000, 1, 0, 0, 1, 0, 1, 0]], "nino", patience_s=0.2)

    def slow_reader(self) -> None:
        """Forecasts of 13 MB that nobody reads."""
        self.forecast(400_000, [], "linear", hold_s=5)

    def forecast(self, weights: int, blocks: list[list[int]], forecaster: str, **stay: float) -> None:
        path = f"/v1/jobs/evil-{self.draw.randrange(10**6)}"
        wiring = {"parameters": [["w", [weights]]], "neurons": weights + 1, "blocks": blocks}
        self.send("PUT", path, json.dumps({"wiring": wiring, "forecaster": forecaster}).encode())
        for step in range(1, 6):
            frames = write_frames(Header("snapshot", "float32", (weights,), step), torch.randn(weights).numpy().data.cast("B"))
            self.send("PUT", f"{path}/snapshots/{step}", b"".join(frames), kind=MEDIA_TYPE)
        self.send("POST", f"{path}/nowcasts", json.dumps({"context": [1, 2, 3, 4, 5], "horizons": [*range(1, 9)]}).encode(), **stay)
        if self.draw.random() < 0.5:
            self.send("DELETE", path)
