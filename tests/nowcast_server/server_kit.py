"""A small network, forecasters that do as they are told, and a caller that speaks the protocol to an app in process."""

import json
import math
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPResponse
from typing import Any

import torch
from fastapi import FastAPI
from httpx2 import Client, Response
from streams import read
from waiting import until as until  # noqa: PLC0414 -- for the tests that have the rest from here

from nowcast_server.forecasters import simple
from nowcast_server.interruption import interruptible_items
from nowcast_server.jobs.registry import Job
from nowcast_server.running import server_for
from nowcast_server.service import Service
from nowcast_server.settings import Settings
from nowcast_server.tokens import ANONYMOUS
from protos.frames import MEDIA_TYPE, Header, write_frames
from protos.messages import Progress
from protos.wiring import Block, Parameter, Wiring


def dense(targets: int = 3, sources: int = 4) -> Wiring:
    """One linear layer without bias."""
    block = Block(1, 0, sources, sources, targets, parameter=0, source_stride=1, target_stride=sources)
    return Wiring((Parameter("layer.weight", (targets, sources)),), sources + targets, (block,))


def frames(values: torch.Tensor, *, step: int, chunk_bytes: int = 64, **changes: Any) -> bytes:
    """A snapshot as it goes over the wire; `changes` to its header."""
    dtype = str(values.dtype).removeprefix("torch.")
    header = Header("snapshot", dtype, (values.numel(),), step, **changes)
    return b"".join(write_frames(header, values.contiguous().view(torch.uint8).numpy().data, chunk_bytes=chunk_bytes))


def request(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    """A request as it goes over the wire."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    lines = (f"{name}: {value}" for name, value in {"host": "x", "content-length": str(len(body)), **named}.items())
    return "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode("latin-1") + body


NOWCAST = request("POST", "/v1/jobs/job/nowcasts", b'{"context": [10, 20, 30], "horizons": [1]}', content_type="application/json")


def answer(connection: socket.socket, sent: bytes = b"") -> tuple[HTTPResponse, bytes]:
    """The next answer, once this is sent, and its body."""
    if sent:
        connection.sendall(sent)
    response = HTTPResponse(connection)
    response.begin()
    return response, response.read()


def read_forecasts(body: bytes) -> tuple[Header, torch.Tensor]:
    """The forecasts of a nowcast's answer."""
    header, payload = read(body)
    return header, torch.frombuffer(payload, dtype=getattr(torch, header.dtype)).view(header.shape)


@dataclass
class Last(simple.Last):
    """No change, once it has raised its errors, one a call; the base of the others."""

    name: str = "last"
    max_horizon: int | None = None
    glide_horizon: int = 1

    working: int = 0
    seconds: float = 0.0
    weights_bytes: int = 0
    host: int = 0
    errors: list[BaseException] = field(default_factory=list)

    def forecast(self, wiring: Wiring, states: Sequence[torch.Tensor], horizons: Sequence[int]) -> torch.Tensor:
        if self.errors:
            raise self.errors.pop(0)
        return super().forecast(wiring, states, horizons)

    def host_bytes(self, wiring: Wiring) -> int:
        return self.host

    def working_bytes(self, wiring: Wiring, *, context: int) -> int:
        return self.working

    def work_s(self, wiring: Wiring, *, context: int) -> float:
        return self.seconds


@dataclass
class Held(Last):
    """Waits, once it has begun, until it is let go."""

    begun: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    released: threading.Event = field(default_factory=threading.Event)
    seen: list[torch.Tensor] = field(default_factory=list)

    def forecast(self, wiring: Wiring, states: Sequence[torch.Tensor], horizons: Sequence[int]) -> torch.Tensor:
        self.begun.release()
        assert self.released.wait(120)
        self.seen.append(torch.stack(tuple(states)))
        return super().forecast(wiring, states, horizons)

    @contextmanager
    def making(self, caller: "Caller") -> Iterator[None]:
        """A nowcast is being made; at the end it is let go, and has to succeed."""
        with ThreadPoolExecutor(1) as pool:
            nowcast = pool.submit(caller.nowcast)
            try:
                assert self.begun.acquire(timeout=60)
                yield
            finally:
                self.released.set()
            assert nowcast.result().status_code == 200


@dataclass
class Walk(Last):
    """Takes a minute, in small steps, as the streaming engine does; stops when it is cancelled."""

    begun: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    ended: bool = False

    def forecast(self, wiring: Wiring, states: Sequence[torch.Tensor], horizons: Sequence[int]) -> torch.Tensor:
        self.begun.release()
        for _ in interruptible_items(range(6000)):
            time.sleep(0.01)
        self.ended = True
        return super().forecast(wiring, states, horizons)


@dataclass
class Odd(Last):
    """Gives whatever `answer` makes of the context."""

    answer: Callable[[torch.Tensor, int], torch.Tensor] = lambda states, rows: states[-1].repeat(rows, 1)

    def forecast(self, wiring: Wiring, states: Sequence[torch.Tensor], horizons: Sequence[int]) -> torch.Tensor:
        return self.answer(torch.stack(tuple(states)), len(horizons))


@dataclass
class Caller:
    """Calls one app, as one job of one tenant would."""

    client: Client
    service: Service
    wiring: Wiring
    job: str = "job"
    headers: dict[str, str] = field(default_factory=dict)

    def register(self, **changes: Any) -> Response:
        spec = {"wiring": self.wiring.to_dict(), "context": 3, "forecaster": "last", **changes}
        return self.client.put(
            f"/v1/jobs/{self.job}", content=json.dumps(spec), headers={**self.headers, "content-type": "application/json"}
        )

    def put(self, job: str, *, headers: dict[str, str] | None = None, **changes: Any) -> None:
        """Register another job."""
        assert self.as_job(job, **(headers or {})).register(**changes).status_code == 201

    def filled(self) -> "Caller":
        """The same, registered and with a context of snapshots."""
        assert self.register().status_code == 201
        self.fill()
        return self

    def values(self, seed: int, dtype: str = "float32") -> torch.Tensor:
        return torch.randn(self.wiring.size, generator=torch.Generator().manual_seed(seed)).to(getattr(torch, dtype))

    def upload(self, step: int, body: Any = None, **headers: str) -> Response:
        body = frames(self.values(step), step=step) if body is None else body
        sent = {**self.headers, "content-type": MEDIA_TYPE, **{name.replace("_", "-"): value for name, value in headers.items()}}
        return self.client.put(f"/v1/jobs/{self.job}/snapshots/{step}", content=body, headers=sent)

    def fill(self, *steps: int) -> None:
        for step in steps or (10, 20, 30):
            assert self.upload(step).status_code == 200

    def nowcast(
        self, step: int = 30, horizons: Sequence[int] = (1, 5), *, deadline_s: float | None = None, **changes: Any
    ) -> Response:
        headers = self.headers if deadline_s is None else {**self.headers, "x-deadline-s": str(deadline_s)}
        return self.client.post(
            f"/v1/jobs/{self.job}/nowcasts",
            json={"context": [step - 20, step - 10, step], "horizons": list(horizons), **changes},
            headers=headers,
        )

    def connect(self) -> socket.socket:
        """A connection of its own."""
        return socket.create_connection((self.client.base_url.host, self.client.base_url.port or 0), timeout=60)

    def status(self) -> dict[str, Any]:
        return dict(self.client.get(f"/v1/jobs/{self.job}", headers=self.headers).json())

    @property
    def entry(self) -> Job:
        """The server's only job, as it holds it."""
        (job,) = self.service.jobs
        return job

    def steps(self) -> list[int]:
        return list(self.status()["steps"])

    def as_job(self, job: str, **headers: str) -> "Caller":
        return Caller(self.client, self.service, self.wiring, job, headers or self.headers)


def token(tenant: str) -> str:
    return f"{tenant}-token-of-some-length"


def bearer(tenant: str) -> dict[str, str]:
    """What a call of a tenant has for a header."""
    return {"authorization": f"Bearer {token(tenant)}"}


TOKENS = ",".join(f"{tenant}:{token(tenant)}" for tenant in ("alice", "bob", "operator"))

Start = Callable[..., Caller]
"""`start(forecaster, …, wiring=…, setting=…)` runs an app and gives a caller."""


def tell(service: Service, job: str, steps: range, *, tenant: str = ANONYMOUS, speed: float = 1.0, **changes: Any) -> Job:
    """Have the run of a job tell its progress at these steps: a falling loss, a gain, a coherence."""
    found = service.jobs.get(tenant, job)
    for step in steps:
        loss = 2.0 * math.exp(-speed * step / 400) + 0.1 + 0.02 * math.sin(step)
        progress = {"max_steps": 2000, "loss": loss, "gain": 0.7, "coherence": 0.4, "used": step // 10, **changes}
        found.tell(Progress(step=step, **progress))
    return found


def refused(response: Response, status: int, code: str, field: str | None = None) -> dict[str, Any]:
    """Assert that a call was refused as said; the problem."""
    assert response.headers["content-type"] == "application/problem+json", response.text
    problem = dict(response.json())
    assert (response.status_code, problem["status"], problem["code"]) == (status, status, code), problem
    assert field is None or problem["field"] == field, problem
    assert problem["detail"]
    return problem


def homes(client: Client, **headers: str) -> Counter[str]:
    """How many jobs each replica on Ray holds; none that is starting or going."""
    while not (response := client.get("/metrics", headers=headers)).is_success:  # a replica that goes may fail the one that asks
        time.sleep(0.5)
    lines = [line for line in response.text.splitlines() if line.startswith("nowcast_jobs{")]
    return Counter({line.split('replica="')[1].split('"')[0]: int(float(line.split()[-1])) for line in lines})


def wait_until_ready(client: Client) -> None:
    until(lambda: client.get("/readyz").status_code == 200)


@contextmanager
def listening(app: FastAPI, settings: Settings, *, verify: ssl.SSLContext | bool = True, port: int = 0) -> Iterator[Client]:
    """The app under uvicorn on a loopback port, a free one if none is given, and a client of it."""
    scheme = "https" if settings.tls_cert else "http"
    with socket.create_server(("127.0.0.1", port)) as listener:
        server = server_for(app, settings)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            with Client(base_url=f"{scheme}://127.0.0.1:{listener.getsockname()[1]}", timeout=30, verify=verify) as client:
                until(lambda: server.started)
                wait_until_ready(client)
                yield client
        finally:
            server.should_exit = True
            thread.join()
