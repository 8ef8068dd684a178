"""`nowcast-server serve-on-ray --max-replicas 2`: under queued forecasts one replica becomes two, and in the quiet one again."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial

import httpx2
import pytest
import torch
from server_kit import homes
from torch import Tensor, nn
from waiting import until as until_within

from nowcast_server.forecasters import load_forecaster
from protos.errors import HistoryMissing, NowcastError, UnknownJob
from protos.messages import JobSpec
from trainer_worker.endpoints.client import HttpEndpoint
from trainer_worker.endpoints.endpoint import Asked, Deadline
from trainer_worker.wiring import wire

pytestmark = [pytest.mark.ray, pytest.mark.cluster, pytest.mark.timeout(1800)]

CONTEXT, INTERVAL, WIDTH = 5, 2, 170
PERIOD = CONTEXT * INTERVAL
AT_HAND, PRESSES = 4.5, 10
"""Each press has always one forecast at hand: two want one replica, all of them two."""
until = partial(until_within, within_s=400.0)  # on a machine with every core taken


WIRING = wire(nn.Sequential(nn.Linear(64, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 64)))
SPEC = JobSpec(wiring=WIRING, context=CONTEXT)


class Press:
    """Asks for the same forecast over and over, so that forecasts wait whatever else the machine has to do."""

    def __init__(self, index: int, server: str) -> None:
        self.states = torch.randn(CONTEXT, WIRING.size, generator=torch.Generator().manual_seed(index))
        self.told: list[Tensor] = []  # each once
        self.failed: list[str] = []
        self.asked = 0
        self._endpoint = HttpEndpoint(server, job=f"press-{index}")
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        missing = [*range(CONTEXT)]
        registered = False
        while not self._enough.is_set():
            try:
                if not registered:
                    self._endpoint.register(SPEC, replace=False, deadline=Deadline(120))
                    registered = True
                while missing:
                    self._endpoint.send(missing[0] * INTERVAL, self.states[missing[0]], deadline=Deadline(120))
                    del missing[0]
                out = torch.empty(1, WIRING.size)
                self._endpoint.forecast(Asked(range(0, PERIOD, INTERVAL), (5,)), out, deadline=Deadline(120))
                self.asked += 1
                self.told += [] if any(map(out.equal, self.told)) else [out]
            except UnknownJob:
                registered, missing = False, [*range(CONTEXT)]
            except HistoryMissing:
                missing = [*range(CONTEXT)]
            except NowcastError as error:
                self.failed.append(str(error))

    def stop(self) -> None:
        """After the forecast that is under way."""
        self._enough.set()
        self._thread.join(400)
        assert not self._thread.is_alive()
        self._endpoint.close()


@pytest.fixture
def server() -> Iterator[httpx2.Client]:
    """The command's own server, on a Ray cluster of its own, which ends with it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    scaling = ["--max-replicas", "2", "--at-hand", str(AT_HAND), "--upscale-delay-s", "1", "--downscale-delay-s", "1"]
    command = ["serve-on-ray", "--port", str(port), "--cpus", "0.5", "--memory", "256MiB", *scaling]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    process = subprocess.Popen([sys.executable, "-m", "nowcast_server", *command], env=environment)
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            until(lambda: answers(client) or process.poll() is not None)
            assert process.poll() is None, "the server did not start"
            yield client
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)


def answers(client: httpx2.Client) -> bool:
    """Is it ready?"""
    try:
        return client.get("/readyz", timeout=5).is_success
    except httpx2.TransportError:
        return False


def test_replicas_come_and_go_with_the_forecasts(server: httpx2.Client) -> None:
    """Load would not bring a replica, or quiet not end one; or its end would cost jobs their nowcasts, or give them others'."""
    assert len(homes(server)) == 1
    presses = [Press(index, str(server.base_url).rstrip("/")) for index in range(PRESSES)]
    until(lambda: len(homes(server)) == 2 and all(homes(server).values()) and homes(server).total() == PRESSES)
    *others, first, second = presses
    for press in others:
        press.stop()
    until(lambda: len(homes(server)) == 1)  # while two ask on
    reached = first.asked, second.asked
    until(lambda: first.asked >= reached[0] + 2 and second.asked >= reached[1] + 2)
    first.stop()
    second.stop()
    forecaster = load_forecaster("nino")
    for press in presses:
        assert not press.failed
        (told,) = press.told
        assert told.equal(forecaster.forecast(WIRING, press.states, horizons=(5,))), "another job's forecast"
