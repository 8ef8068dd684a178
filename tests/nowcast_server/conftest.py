"""Apps in process for the server's tests."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from httpx2 import Client
from server_kit import Caller, Last, Start, dense, listening, wait_until_ready

from nowcast_server.app import create_app
from nowcast_server.forecasters import Forecaster
from nowcast_server.settings import Settings
from protos.wiring import Wiring


def _started(connect: Callable[[FastAPI, Settings], AbstractContextManager[Client]]) -> Iterator[Start]:
    with ExitStack() as stack:

        def start_app(*forecasters: Forecaster, wiring: Wiring | None = None, **given: Any) -> Caller:
            settings = Settings(**given)
            made = None if settings.checkpoints else {each.name: each for each in forecasters or (Last(),)}
            app = create_app(settings, forecasters=made)
            client = stack.enter_context(connect(app, settings))
            wait_until_ready(client)
            return Caller(client, app.state.service, wiring or dense())

        yield start_app


@pytest.fixture
def start() -> Iterator[Start]:
    """Runs apps in process, without sockets: quick, but a body arrives in one piece. Given checkpoints: with all forecasters."""
    yield from _started(lambda app, _: TestClient(app, raise_server_exceptions=False))


@pytest.fixture
def listen() -> Iterator[Start]:
    """Runs apps under uvicorn on a loopback port, as `nowcast-server run` does, where sockets matter."""
    yield from _started(listening)


@pytest.fixture(scope="module")
def listen_module() -> Iterator[Start]:
    """The same, for all tests of a module."""
    yield from _started(listening)


@pytest.fixture
def caller(start: Start) -> Caller:
    """A registered job on a server with default limits."""
    caller = start()
    assert caller.register().status_code == 201
    return caller
