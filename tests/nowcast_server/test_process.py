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
from typing import Any

import httpx2
import psutil
import pytest
import torch
from fastapi.testclient import TestClient
from server_kit import Caller, Last, dense, frames, refused, request, until
from typer.testing import CliRunner

from nowcast_server.app import create_app
from nowcast_server.cli import app
from nowcast_server.healthcheck import check
from nowcast_server.running import server_for
from nowcast_server.settings import Settings
from nowcast_server.tokens import Tokens, check_exposure
from protos.frames import MEDIA_TYPE
from protos.wiring import Parameter, Wiring

Run = Callable[..., "Process"]

SLOW_FORECASTER = """
import os, sys, time
from nowcast_server import app, running
from nowcast_server.forecasters.simple import Last
from nowcast_server.settings import Settings

class Slow(Last):
    def predict(self, wiring, states, *, horizons):
        print("begun", flush=True)
        while not os.path.exists(os.environ.get("GO_ON", "")):
            time.sleep(0.01)
        return super().predict(wiring, states, horizons=horizons)
running.create_app = lambda settings, **given: app.create_app(settings, forecasters={"slow": Slow()}, **given)
sys.exit(running.serve(Settings()))
"""


class Process:
    """`nowcast-server run` on a free port."""

    def __init__(self, *command: str, wait: bool = True, **environment: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.popen = subprocess.Popen(
            [sys.executable, *(command or ("-m", "nowcast_server", "run"))],
            env={**os.environ, "NOWCAST_PORT": str(self.port), "OMP_NUM_THREADS": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.told = ""
        self.listen_on(self.port)
        if wait:
            until(self.ready, within_s=240)

    def listen_on(self, port: str | int) -> None:
        """Have the client call the server there."""
        self.port = int(port)
        self.client = httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)

    def line(self, text: str) -> str:
        """The next line of the log that has this text in it."""
        assert self.popen.stdout is not None
        for line in iter(self.popen.stdout.readline, ""):
            self.told += line
            if text in line:
                return line
        raise AssertionError(self.told)

    def ready(self) -> bool:
        assert self.popen.poll() is None, self.popen.stdout.read()  # type: ignore[union-attr]
        try:
            return self.client.get("/readyz").status_code == 200
        except httpx2.TransportError:
            return False

    def caller(self) -> Caller:
        """Calls as a job with contexts of two snapshots."""
        return Caller(self.client, None, dense())  # type: ignore[arg-type]

    def nowcast(self) -> httpx2.Response:
        """Of a job that is registered for it."""
        caller = self.caller()
        assert caller.register(context=2, forecaster="slow").status_code == 201
        caller.fill(1, 2)
        return caller.nowcast(context=[1, 2])

    def ended(self) -> tuple[int, str]:
        """Its exit status, once it has ended, and what it printed."""
        output, _ = self.popen.communicate(timeout=60)
        return self.popen.returncode, output


@pytest.fixture
def run() -> Iterator[Run]:
    """Starts server processes and ends them."""
    with ExitStack() as stack:

        def start(*command: str, wait: bool = True, **environment: str) -> Process:
            process = Process(*command, wait=wait, **environment)
            stack.callback(process.client.close)
            stack.callback(process.popen.wait, 60)
            stack.callback(process.popen.kill)
            return process

        yield start


def test_the_life_of_a_server(run: Run, tmp_path: Path) -> None:
    """The command would not run a server that others reach; made tokens, new ones or mistakes in their file would lock everybody
    out; half a snapshot would be visible; or SIGTERM would not end it in order.
    """
    made = CliRunner().invoke(app, ["token", "alice"])
    line, token = made.output.splitlines()[0], made.output.split()[-1]
    tokens, new = tmp_path / "tokens", "another-token-of-some-length"
    tokens.write_bytes(b"\xef\xbb\xbf" + line.encode())
    process = run(
        *("-m", "nowcast_server", "run", "--host", "0.0.0.0", "--port", "0", "--log-level", "debug", "--token-file", str(tokens)),
        wait=False,
    )
    process.listen_on(re.search(r"listening address=0\.0\.0\.0:(\d+)", process.line("listening"))[1])  # type: ignore[index]
    assert "forecasters=last,linear,spectral,average,wnn,nino" in process.line("ready ")
    assert process.client.get("/v1/jobs").json()["code"] == "unauthorized"

    def status(given: str) -> int:
        process.client.headers["authorization"] = f"Bearer {given}"
        return process.client.get("/v1/jobs").status_code

    assert (status(new), status(token)) == (401, 200)
    caller = process.caller()
    assert caller.register(context=2).status_code == 201
    body = frames(caller.values(1), step=1)
    put = request("PUT", "/v1/jobs/job/snapshots/1", body, content_type=MEDIA_TYPE, authorization=f"Bearer {token}")
    cuts = range(1, len(body), 3)  # more than the history has rows
    for cut in cuts:
        with caller.connect() as connection:
            connection.sendall(put[:-cut])
    for _ in cuts:  # the server hears of them later than of a call on a connection that it has already
        process.line("client disconnected")
    assert process.client.get("/v1/jobs/job").json()["steps"] == []
    assert caller.upload(1).json()["steps"] == [1]
    with process.client.stream("GET", "/events") as page:
        events = page.iter_raw()
        next(events)
        tokens.write_text(f"alice:{new}\nbob:{token[::-1]}\n")
        process.popen.send_signal(signal.SIGHUP)
        process.line("reloaded")
        late = time.monotonic() + 30
        assert all(time.monotonic() < late for _ in events)  # whoever has a token that was taken back sees no more
    assert (status(token), status(new)) == (401, 200)
    tokens.write_text("what is this?\n")
    process.popen.send_signal(signal.SIGHUP)
    process.line("cannot reload")
    assert status(new) == 200
    assert process.client.get("/v1/jobs/job").json()["steps"] == [1]
    process.popen.terminate()
    ended, output = process.ended()
    assert ended == 0, output
    assert "stopped" in output
    assert "Traceback" not in output
    assert not [secret for secret in (token, new) if secret in process.told + output]


def test_draining(run: Run, tmp_path: Path) -> None:
    """On SIGTERM a forecast in flight would be lost, or new work be taken in only to be lost."""
    process = run("-c", SLOW_FORECASTER, GO_ON=str(tmp_path / "go_on"))
    with ThreadPoolExecutor(1) as pool:
        nowcast = pool.submit(process.nowcast)
        process.line("begun")
        process.popen.send_signal(signal.SIGTERM)
        until(lambda: not process.ready())
        ready = process.client.get("/readyz")
        assert process.client.get("/livez").status_code == 200
        caller = process.caller()
        for response in (caller.upload(3), caller.nowcast(), caller.as_job("b").register(), ready):
            problem = refused(response, 503, "unavailable")
            assert response.headers["retry-after"] == str(problem["retry_after_s"])
        (tmp_path / "go_on").touch()
        assert nowcast.result().status_code == 200
    process.client.close()
    ended, output = process.ended()
    assert ended == 0, output
    assert "Traceback" not in output


def test_a_forecaster_that_is_stuck(run: Run) -> None:
    """The server would never end, and neither would its client's call; or nobody would see that it is of no use any more."""
    process = run("-c", SLOW_FORECASTER, NOWCAST_DRAIN_S="1", NOWCAST_FORECAST_LIMIT_S="0.5")
    with ThreadPoolExecutor(1) as pool:
        nowcast = pool.submit(process.nowcast)
        process.line("begun")
        until(lambda: process.client.get("/livez").status_code == 503)
        process.popen.send_signal(signal.SIGTERM)
        refused(nowcast.result(), 503, "unavailable")
    ended, output = process.ended()
    assert ended in {0, 1}, output


def test_a_server_that_cannot_load_ends(run: Run) -> None:
    """Whatever keeps the server running would not start it again."""
    process = run(NOWCAST_CHECKPOINTS="/no/such/file.safetensors", wait=False)
    ended, output = process.ended()
    assert ended == 1, output


@pytest.mark.slow
def test_memory_comes_back(run: Run) -> None:
    """Jobs that come and go would fill the machine, whatever the budgets say."""
    process = run(NOWCAST_MEMORY="128MiB", NOWCAST_FORECAST_MEMORY="128MiB")
    size = 700_000
    wiring = Wiring((Parameter("w", (size,)),), 4, ())

    def one(job: str) -> None:
        with httpx2.Client(base_url=process.client.base_url, timeout=60) as client:
            caller = Caller(client, None, wiring, job)  # type: ignore[arg-type]
            assert caller.register(context=5, forecaster="linear").status_code == 201
            for step in range(5):
                assert caller.upload(step, frames(torch.ones(size), step=step, chunk_bytes=1 << 20)).status_code == 200
            assert caller.nowcast(context=[0, 1, 2, 3, 4], horizons=(1, 5, 40)).status_code == 200
            assert client.delete(f"/v1/jobs/{job}").status_code == 204

    one("first")  # torch's and MKL's buffers are there from now on
    watched = psutil.Process(process.popen.pid)
    begin_bytes = peak_bytes = watched.memory_info().rss
    with ThreadPoolExecutor(4) as pool:  # 24 histories of 17 MB, as many forecasts of 8
        for _ in pool.map(one, (f"job-{index}" for index in range(24))):
            peak_bytes = max(peak_bytes, watched.memory_info().rss)
    assert peak_bytes < begin_bytes + (1.2 * 256 + 150) * 2**20
    until(lambda: watched.memory_info().rss < 1.1 * begin_bytes, within_s=90)


def test_a_drain_ends_when_it_said() -> None:
    """Answers would be waited for as long again after forecasts were, and Kubernetes kills a server long before."""
    settings = Settings(drain_s=60)
    server = server_for(create_app(settings, forecasters={"last": Last()}), settings)
    server.handle_exit(signal.SIGTERM, None)
    assert server._drain_until is not None
    server._drain_until -= 50
    assert asyncio.run(server.on_tick(1))
    assert server.config.timeout_graceful_shutdown in {9, 10}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--host", "0.0.0.0"], "refusing to listen on 0.0.0.0 without tokens"),
        (["--memory", "much"], "Invalid value for --memory"),
        (["--token-file", "/no/such/tokens"], "/no/such/tokens"),
        (["--record", "/dev/null/record"], "/dev/null/record"),
        (["--tls-ca", "/etc/hosts"], "need a certificate, --tls-cert"),
        (["--tls-cert", "/no/such/certificate"], "there is no file /no/such/certificate"),
        (["--tls-cert", "/etc/hosts"], "/etc/hosts is no PEM certificate"),
        (["--port", "99999"], "Invalid value for --port"),
        (["--memroy", "1GiB"], "No such option"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_options(options: list[str], says: str) -> None:
    """A server with a wrong option would start all the same, or fail with a traceback."""
    done = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["run", "--port", "0", *options])
    assert done.exit_code == 2, done.output
    assert says in done.output
    assert "Traceback" not in done.output


def test_a_wrong_variable_is_named() -> None:
    """An operator would look for an option that was never given, or that there is not."""
    done = CliRunner(env={"COLUMNS": "200", "NOWCAST_QUEUE": "0"}).invoke(app, ["run", "--port", "0"])
    assert done.exit_code == 2
    assert "Invalid value for NOWCAST_QUEUE" in done.output


def test_a_service_link_is_named() -> None:
    """In Kubernetes a server beside a service named nowcast would not start, and nobody would know why."""
    with pytest.raises(ValueError, match="enableServiceLinks"):
        Settings(port="tcp://10.0.0.1:8440")  # type: ignore[arg-type]


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
        to = f"http://127.0.0.1:{collector.server_port}"
        tracing = {"NOWCAST_OTEL": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": to, "OTEL_EXPORTER_OTLP_COMPRESSION": "none"}
        process = run(NOWCAST_TOKENS=f"alice:{token}", **tracing)
        process.client.get("/v1/jobs/mine", headers={"authorization": f"Bearer {token}"})
        process.popen.terminate()
        ended, output = process.ended()
        assert ended == 0, output
        assert token not in output
        collector.shutdown()
    assert b"/v1/jobs/{job}" in came["/v1/traces"]
    assert b"http.server.request.duration" in came["/v1/metrics"]
    assert all(token.encode() not in body and b"/readyz" not in body for body in came.values())


def test_a_unix_socket(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A server beside its workers could only be had on a port that others may reach; or its container would count as ill."""
    settings = Settings(uds=tmp_path / "socket", host="0.0.0.0")
    check_exposure(settings, Tokens())
    server = server_for(create_app(settings, forecasters={"last": Last()}), settings)
    caplog.set_level("INFO")
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: check(settings) is None)
    assert [record.address for record in caplog.records if record.message == "listening"] == [str(settings.uds)]
    server.should_exit = True
    thread.join()
    assert "no answer on" in str(check(settings))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"checkpoints": ("/no/such/file.safetensors",)}, "cannot read the checkpoint /no/such/file.safetensors"),
        ({"device": "cuda:99"}, "--device cuda:99"),
        ({"forecast_memory": "100KiB"}, "the weights of the forecasters needs"),
    ],
)
def test_what_cannot_be_loaded(given: dict[str, Any], says: str, caplog: pytest.LogCaptureFixture) -> None:
    """A server would go on that is never ready, or fail with a traceback."""
    failed = threading.Event()
    with TestClient(create_app(Settings(**given), on_failure=failed.set)) as client:
        assert failed.wait(60)
        assert [client.get(path).status_code for path in ("/livez", "/readyz")] == [503, 503]
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert says in record.getMessage()
    assert not record.exc_info
