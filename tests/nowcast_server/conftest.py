"""Apps in process for the server's tests, and their support module on the path."""

import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

sys.path.insert(0, str(Path(__file__).parent))

from server_kit import Caller, Last, Start, dense

from nowcast_server.app import create_app
from nowcast_server.forecasting import Forecaster
from nowcast_server.running import server_for
from nowcast_server.settings import Settings
from protos.wiring import Wiring


def _app(forecasters: tuple[Forecaster, ...], settings: Settings) -> FastAPI:
    by_name = {each.name: each for each in forecasters or (Last(),)}
    return create_app(settings, forecasters=by_name)


def _ready(client: httpx2.Client) -> None:
    while client.get("/readyz").status_code != 200:
        time.sleep(0.005)


@pytest.fixture
def start() -> Iterator[Start]:
    """Runs apps in process, without sockets: quick, but a body arrives in one piece."""
    with ExitStack() as stack:

        def start_app(*forecasters: Forecaster, wiring: Wiring | None = None, **settings: Any) -> Caller:
            app = _app(forecasters, Settings(**settings))
            client = stack.enter_context(TestClient(app, raise_server_exceptions=False))
            _ready(client)
            return Caller(client, app.state.service, wiring or dense())

        yield start_app


@contextmanager
def _listening(app: FastAPI, settings: Settings) -> Iterator[httpx2.Client]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = server_for(app, settings)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            with httpx2.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=30) as client:
                while not server.started:
                    time.sleep(0.005)
                _ready(client)
                yield client
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def _listener() -> Iterator[Start]:
    with ExitStack() as stack:

        def start_app(*forecasters: Forecaster, wiring: Wiring | None = None, **settings: Any) -> Caller:
            app = _app(forecasters, Settings(**settings))
            client = stack.enter_context(_listening(app, Settings(**settings)))
            return Caller(client, app.state.service, wiring or dense())

        yield start_app


@pytest.fixture
def listen() -> Iterator[Start]:
    """Runs apps under uvicorn on a loopback port, as `nowcast-server run` does, where sockets matter."""
    with _listener() as start:
        yield start


@pytest.fixture(scope="module")
def listen_module() -> Iterator[Start]:
    """The same, for all tests of a module."""
    with _listener() as start:
        yield start


@pytest.fixture
def caller(start: Start) -> Caller:
    """A registered job on a server with default limits."""
    caller = start()
    assert caller.register().status_code == 201
    return caller
