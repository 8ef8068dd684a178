"""A real server process: what it refuses to start with, how it says that it is ready, and how it ends."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2
import pytest
from server_kit import Last, frames, until

from nowcast_server.app import create_app
from nowcast_server.running import server_for
from nowcast_server.settings import Settings
from protos.frames import MEDIA_TYPE

Run = Callable[..., "Process"]

SLOW_FORECASTER = """
import sys, time
from nowcast_server import app
from nowcast_server import running
from nowcast_server.settings import Settings

class Slow:
    name, max_horizon, glide_horizon, weights_bytes = "slow", None, 1, 0
    def check(self, wiring, *, context):
        pass
    def forecast(self, wiring, states, horizons):
        print("begun", flush=True)
        time.sleep(1.5)
        return states[-1].repeat(len(horizons), 1)
    def working_bytes(self, wiring, *, context):
        return 0
    def work_s(self, wiring, *, context):
        return 0.0

running.create_app = lambda settings, **given: app.create_app(settings, forecasters={"slow": Slow()}, **given)
sys.exit(running.serve(Settings()))
"""


class Process:
    """`nowcast-server run` on a free port."""

    def __init__(self, *command: str, wait: bool = True, port: int = 0, **environment: str) -> None:
        with socket.create_server(("127.0.0.1", port)) as free:
            self.port = free.getsockname()[1]
        self.popen = subprocess.Popen(
            [sys.executable, *(command or ("-m", "nowcast_server", "run"))],
            env={**os.environ, "NOWCAST_PORT": str(self.port), "OMP_NUM_THREADS": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.client = httpx2.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=20)
        if wait:
            until(self.ready, within_s=60)

    def ready(self) -> bool:
        assert self.popen.poll() is None, self.popen.stdout.read()  # type: ignore[union-attr]
        try:
            return self.client.get("/readyz").status_code == 200
        except httpx2.TransportError:
            return False

    def register(self, forecaster: str = "last") -> None:
        wiring = {"parameters": [["w", [4]]], "neurons": 4, "blocks": []}
        spec = {"wiring": wiring, "context": 2, "forecaster": forecaster}
        assert self.client.put("/v1/jobs/job", json=spec).status_code == 201

    def upload(self, step: int) -> httpx2.Response:
        import torch

        return self.client.put(
            f"/v1/jobs/job/snapshots/{step}", content=frames(torch.ones(4), step=step), headers={"content-type": MEDIA_TYPE}
        )

    def end(self, sign: int = signal.SIGTERM, *, within_s: float = 20) -> tuple[int, str]:
        """Its exit status, and all it printed."""
        if self.popen.poll() is None:
            self.popen.send_signal(sign)
        output, _ = self.popen.communicate(timeout=within_s)
        return self.popen.returncode, output


@pytest.fixture
def run() -> Iterator[Run]:
    """Starts server processes and ends them."""
    with ExitStack() as stack:

        def start(*command: str, wait: bool = True, port: int = 0, **environment: str) -> Process:
            process = Process(*command, wait=wait, port=port, **environment)
            stack.callback(process.client.close)
            stack.callback(process.popen.wait, 20)
            stack.callback(process.popen.kill)
            return process

        yield start


def test_a_server_starts_serves_and_ends(run: Run) -> None:
    """The command would not run a server, or SIGTERM would not end it in order."""
    process = run()
    process.register()
    for step in (1, 2):
        assert process.upload(step).status_code == 200
    assert process.client.get("/v1/jobs/job").json()["steps"] == [1, 2]
    assert set(process.client.get("/v1/info").json()["forecasters"]) >= {"last", "linear", "average"}
    status, output = process.end()
    assert status == 0, output
    assert re.search(r"info +ready forecasters=\S*last", output)
    assert "stopped" in output
    assert "Traceback" not in output


def test_a_restarted_server_knows_no_jobs(run: Run) -> None:
    """A worker would believe that its history is still there."""
    first = run()
    first.register()
    first.upload(1)
    first.end(signal.SIGKILL)
    second = run(port=first.port)
    problem = second.upload(2).json()
    assert (problem["status"], problem["code"]) == (404, "unknown_job")
    second.register()
    assert second.upload(2).json()["steps"] == [2]


def test_draining(run: Run) -> None:
    """On SIGTERM a forecast in flight would be lost, or new work be taken in only to be lost."""
    process = run("-c", SLOW_FORECASTER)
    process.register("slow")
    for step in (1, 2):
        process.upload(step)
    assert process.popen.stdout is not None
    with ThreadPoolExecutor(1) as pool:
        nowcast = pool.submit(process.client.post, "/v1/jobs/job/nowcasts", json={"context": [1, 2], "horizons": [1]})
        while process.popen.stdout.readline().strip() != "begun":
            pass
        process.popen.send_signal(signal.SIGTERM)
        until(lambda: not process.ready())
        ready = process.client.get("/readyz")
        assert (ready.status_code, ready.json()["code"]) == (503, "unavailable")
        assert process.client.get("/livez").status_code == 200
        assert process.upload(3).json()["code"] == "unavailable"
        assert nowcast.result().status_code == 200
    process.client.close()
    output, _ = process.popen.communicate(timeout=20)
    assert process.popen.returncode == 0, output
    assert "Traceback" not in output


def test_a_drain_ends_when_it_said() -> None:
    """Answers would be waited for as long again after forecasts were, and Kubernetes kills a server long before."""
    settings = Settings(drain_s=60)
    server = server_for(create_app(settings, forecasters={"last": Last()}), settings)
    server.handle_exit(signal.SIGTERM, None)
    assert server._drain_until is not None
    server._drain_until -= 50
    assert asyncio.run(server.on_tick(1))
    assert server.config.timeout_graceful_shutdown in {9, 10}


def test_a_client_that_disconnects_in_the_middle(run: Run) -> None:
    """Half a snapshot would be visible, or its row be lost."""
    import torch

    process = run()
    process.register()
    body = frames(torch.ones(4), step=1)
    cuts = range(1, len(body), 3)  # more than the history has rows
    for cut in cuts:
        with socket.create_connection(("127.0.0.1", process.port)) as connection:
            head = f"PUT /v1/jobs/job/snapshots/1 HTTP/1.1\r\nhost: x\r\ncontent-type: {MEDIA_TYPE}\r\n"
            head += f"content-length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body[:cut])
    assert process.popen.stdout is not None
    for _ in cuts:  # the server hears of them later than of a call on a connection that it has already
        while "client gone" not in process.popen.stdout.readline():
            assert process.popen.poll() is None
    assert process.client.get("/v1/jobs/job").json()["steps"] == []
    assert process.upload(1).json()["steps"] == [1]
    status, output = process.end()
    assert status == 0
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("options", "status", "says"),
    [
        (["--host", "0.0.0.0"], 2, "refusing to listen on 0.0.0.0 without tokens"),
        (["--checkpoint", "/no/such/file.safetensors"], 1, "cannot read the checkpoint /no/such/file.safetensors"),
        (["--memory", "much"], 2, "Invalid value for --memory"),
        (["--token-file", "/no/such/tokens"], 2, "/no/such/tokens"),
        (["--tls-ca", "/etc/hosts"], 2, "need a certificate, --tls-cert"),
        (["--tls-cert", "/no/such/certificate"], 2, "there is no file /no/such/certificate"),
        (["--tls-cert", "/etc/hosts"], 2, "/etc/hosts is no PEM certificate"),
        (["--record", "/dev/null/record"], 2, "/dev/null/record"),
        (["--device", "gpu"], 1, "cannot load the forecasters: --device gpu"),
        (["--device", "cuda:99"], 1, "cannot load the forecasters: --device cuda:99"),
        (["--port", "99999"], 2, "Invalid value for --port"),
        (["--memroy", "1GiB"], 2, "No such option: --memroy"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_options(options: list[str], status: int, says: str) -> None:
    """A server with a wrong option would start all the same, or fail with a traceback."""
    command = [sys.executable, "-m", "nowcast_server", "run", "--port", "0", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, "COLUMNS": "200"})
    output = done.stdout + done.stderr
    assert done.returncode == status, output
    assert says in output
    assert "Traceback" not in output


def test_exposed_with_a_token(run: Run, tmp_path: Path) -> None:
    """A server with tokens could not be reached from elsewhere, or its log would show them."""
    token = "a-token-of-some-length"
    (tmp_path / "tokens").write_text(f"alice:{token}\n")
    process = run(
        "-m", "nowcast_server", "run", "--host", "0.0.0.0", "--token-file", str(tmp_path / "tokens"), "--log-level", "debug"
    )
    assert process.client.get("/v1/jobs").json()["code"] == "unauthorized"
    assert process.client.get("/v1/jobs", headers={"authorization": f"Bearer {token}"}).json() == {"jobs": []}
    _, output = process.end()
    assert "unauthorized" in output
    assert token not in output


def test_traces_reach_a_collector(run: Run) -> None:
    """`NOWCAST_OTEL` would do nothing; or traces would carry tokens, or be drowned in health checks."""
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    came: dict[str, bytes] = {}

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            came[self.path] = came.get(self.path, b"") + body
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing."""

    token = "a-token-of-some-length"
    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        sent = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}",
            "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
        }
        process = run(NOWCAST_OTEL="true", NOWCAST_TOKENS=f"alice:{token}", **sent)
        process.client.get("/v1/jobs/mine", headers={"authorization": f"Bearer {token}"})
        status, output = process.end()
        assert status == 0, output
        collector.shutdown()
    assert b"/v1/jobs/{job}" in came["/v1/traces"]
    assert b"http.server.request.duration" in came["/v1/metrics"]
    assert all(token.encode() not in body and b"/readyz" not in body for body in came.values())


def test_help_is_quick() -> None:
    """`--help` would take seconds, because torch is imported first."""
    start = time.perf_counter()
    command = [sys.executable, "-X", "importtime", "-m", "nowcast_server", "run", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert time.perf_counter() - start < 5  # 0.2 s on a quiet machine
    assert "--token-file" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not imported & {"torch", "fastapi", "uvicorn", "numpy"}


def test_made_tokens_work(run: Run, tmp_path: Path) -> None:
    """The line that `nowcast-server token` prints would not be one the server takes."""
    command = [sys.executable, "-m", "nowcast_server", "token", "alice"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    token = done.stderr.strip().rpartition(" ")[2]
    assert token not in done.stdout
    (tmp_path / "tokens").write_text(done.stdout)
    process = run("-m", "nowcast_server", "run", "--token-file", str(tmp_path / "tokens"))
    assert process.client.get("/v1/jobs", headers={"authorization": f"Bearer {token}"}).status_code == 200
