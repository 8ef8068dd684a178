"""A small nowcast server in this process that breaks in the ways a test asks for. It forecasts that weights go on as they moved."""

import json
import threading
import time
from collections import Counter, defaultdict, deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from cut_network import Listening
from streams import read

from protos.errors import ERRORS
from protos.frames import MEDIA_TYPE, Header, write_frames
from protos.messages import DEADLINE_HEADER, JOB_HEADER

PAGES = {"html": 502, "login": 200, "moved": 308}
"""Status of answers for people: a proxy's, a page to log in at, another address."""


class FaultyServer(Listening):
    """Serves jobs, snapshots, nowcasts and the ends of runs.

    `faults[call]` holds what the next calls meet, first in first out; `call` is register, delete, send, forecast or finish.
    A fault is one of
        an error code, e.g. `busy`        the answer is that problem (with `retry_after` seconds, if set)
        `hang`                            no answer, until the server closes
        `close`                           the connection is cut half way through the body
        `html`, `login`, `moved`          a page of `PAGES`
        for forecasts also `nan`, `wild`, `wrong_shape`, `wrong_step`, `garbage`, `trickle`, `checksum`, `no_end`
        `""`                              none: the call works
    """

    def __init__(self) -> None:
        self.faults: dict[str, deque[str]] = defaultdict(deque)
        self.met: Counter[str] = Counter()
        self.retry_after = ""
        self.always: tuple[int, dict[str, str], bytes] | None = None  # another service's one answer: status, headers, body
        self.jobs: dict[str, dict[int, np.ndarray[Any, Any]]] = {}
        self.specs: dict[str, dict[str, Any]] = {}
        self.calls: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.contexts: list[list[int]] = []
        self.finished: list[dict[str, Any]] = []
        self.closing = threading.Event()
        super().__init__(ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"faulty": self})))

    def close(self) -> None:
        self.closing.set()
        super().close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    faulty: FaultyServer
    timeout = 30
    disable_nagle_algorithm = True

    def do_PUT(self) -> None:
        self._serve("send" if "/snapshots/" in self.path else "register")

    def do_DELETE(self) -> None:
        self._serve("delete")

    def do_POST(self) -> None:
        self._serve("forecast" if self.path.endswith("/nowcasts") else "finish")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- the base class's name
        pass

    def _serve(self, call: str) -> None:
        server = self.faulty
        server.calls.append(call)
        server.headers.append({name: self.headers.get(name, "") for name in (JOB_HEADER, DEADLINE_HEADER, "authorization")})
        fault = server.faults[call].popleft() if server.faults[call] else ""
        server.met[call] += bool(fault)
        length = int(self.headers.get("content-length", 0))
        if fault == "close" and call != "forecast":
            self.rfile.read(length // 2)
            self.close_connection = True
            return
        body = self.rfile.read(length)
        if server.always is not None:
            status, headers, text = server.always
            self._begin(status, headers.get("content-type", "text/plain"), len(text), **headers)
            self.wfile.write(text)
            return
        self.job = self.path.split("/")[3]
        if fault == "hang":
            server.closing.wait()
            self.close_connection = True
        elif fault in PAGES:
            self._answer(PAGES[fault], b"<html></html>", "text/html")
        elif fault in ERRORS:
            self._problem(fault)
        elif call not in ("register", "delete") and self.job not in server.jobs:
            self._problem("unknown_job")
        else:
            getattr(self, f"_{call}")(body, fault)

    def _register(self, body: bytes, fault: str) -> None:
        spec = self.faulty.specs[self.job] = json.loads(body)
        known = bool(self.faulty.jobs.setdefault(self.job, {}))
        self._status(200 if known else 201, spec)

    def _status(self, code: int, spec: dict[str, Any]) -> None:
        history = self.faulty.jobs[self.job]
        status = {
            "job": self.job, "wiring_hash": "", "parameters": 1, "neurons": 1, "edges": 1, "context": spec["context"],
            "dtype": spec["dtype"], "forecaster": spec["forecaster"], "mode": spec["mode"], "created_at": 0.0, "seen_at": 0.0,
            "steps": sorted(history), "history_bytes": 0, "snapshots": 0, "nowcasts": 0,
        }  # fmt: skip
        self._answer(code, json.dumps(status).encode())

    def _delete(self, body: bytes, fault: str) -> None:
        if self.faulty.jobs.pop(self.job, None) is None:
            self._problem("unknown_job")
        else:
            self._answer(204, b"")

    def _send(self, body: bytes, fault: str) -> None:
        header, values = read(body)
        history = self.faulty.jobs[self.job]
        history[header.step] = np.frombuffer(values, dtype="<f4")
        self._answer(200, json.dumps({"step": header.step, "steps": sorted(history)}).encode())

    def _forecast(self, body: bytes, fault: str) -> None:
        request = json.loads(body)
        context, horizons = request["context"], request["horizons"] or [1]
        history = self.faulty.jobs[self.job]
        if missing := [step for step in context if step not in history]:
            self._problem("history_missing", missing=missing)
            return
        self.faulty.contexts.append(context)
        first, last = history[context[0]], history[context[-1]]
        values = np.stack([last + np.float32(horizon) * (last - first) / (len(context) - 1) for horizon in horizons])
        values[0, 0] = np.nan if fault == "nan" else values[0, 0]
        values *= 1e4 if fault == "wild" else 1
        if fault == "wrong_shape":
            values = values[:, :-1].copy()
        header = Header("forecasts", "float32", values.shape, context[-1] + (fault == "wrong_step"), tuple(horizons))
        stream = bytearray(b"".join(bytes(frame) for frame in write_frames(header, memoryview(values).cast("B"), chunk_bytes=64)))
        if fault == "garbage":
            stream = bytearray(b"\x00garbage" * 40)
        if fault == "checksum":
            stream[-40] ^= 1
        if fault == "no_end":
            del stream[-6:]
        self._begin(200, MEDIA_TYPE, len(stream))
        if fault == "trickle":
            for byte in stream:
                self.wfile.write(bytes([byte]))
                time.sleep(0.05)
        self.wfile.write(stream[: len(stream) // 2] if fault == "close" else stream)
        self.close_connection = fault in ("close", "trickle")

    def _finish(self, body: bytes, fault: str) -> None:
        self.faulty.finished.append(json.loads(body))
        self._status(200, self.faulty.specs[self.job])

    def _problem(self, code: str, **extra: Any) -> None:
        error = ERRORS[code]
        problem = {"title": error.title, "status": error.status, "detail": f"told to say {code}", "code": code, **extra}
        self._answer(error.status, json.dumps(problem).encode(), "application/problem+json")

    def _answer(self, status: int, body: bytes, media: str = "application/json") -> None:
        self._begin(status, media, len(body))
        self.wfile.write(body)

    def _begin(self, status: int, media: str, length: int, *, location: str = "", **_: str) -> None:
        self.send_response(status)
        if location:
            self.send_header("location", location)
        if self.faulty.retry_after and status in (429, 503):
            self.send_header("retry-after", self.faulty.retry_after)
        self.send_header("content-type", media)
        self.send_header("content-length", str(length))
        self.end_headers()
