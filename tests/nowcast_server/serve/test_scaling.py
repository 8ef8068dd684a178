"""`nowcast-server serve-on-ray --max-replicas 2`: under queued forecasts one replica becomes two, and in the quiet one again."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count

import httpx2
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from nowcast_server.forecasters import load_forecaster
from protos.errors import HistoryMissing, NowcastError, UnknownJob
from protos.messages import JobSpec
from trainer_worker import Nowcast, Server
from trainer_worker.endpoints.client import HttpEndpoint
from trainer_worker.endpoints.deadline import Deadline
from trainer_worker.wiring import wire

pytestmark = [pytest.mark.ray, pytest.mark.cluster, pytest.mark.timeout(1800)]

CONTEXT, INTERVAL, WIDTH = 5, 2, 170
PERIOD = CONTEXT * INTERVAL
RUNS, AT_HAND, PRESSES = 4, 4.5, 10
"""Each run has one forecast at hand at most, each press has always one: runs alone want one replica, with the presses two."""
PATIENCE_S = 400.0
"""For a machine with every core taken."""


def network(seed: int) -> nn.Module:
    """A perceptron with 56,000 weights, whose forecast takes longer than its training."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 64))


WIRING = wire(network(0))
SPEC = JobSpec(wiring=WIRING, context=CONTEXT)


class Run:
    """A training run in a thread of its own, forecast by NiNo."""

    def __init__(self, job: str, seed: int, *, server: str | None) -> None:
        self.job, self.seed = job, seed
        self.model = network(seed)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        reached = Server(server or "embedded", job=job, timeout_s=120)
        self.nowcast = Nowcast(  # one that waits for its forecasts, so that none is late
            self.model, self.optimizer, server=reached, mode="jump", max_steps=10**6, interval=INTERVAL, wiring=WIRING
        )
        self.periods = 0
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._train, daemon=True)

    def train(self, periods: int) -> None:
        """So many contexts, each with its nowcast. Their batches are the same for a seed."""
        for _ in range(periods):
            for index in range(self.periods * PERIOD, (self.periods + 1) * PERIOD):
                inputs = torch.randn(4, 64, generator=torch.Generator().manual_seed(index))
                self.optimizer.zero_grad()
                functional.mse_loss(self.model(inputs), inputs.flip(1)).backward()
                self.optimizer.step()
            self.periods += 1

    def start(self) -> None:
        self._thread.start()

    def _train(self) -> None:
        with self.nowcast:
            while not self._enough.is_set():
                self.train(1)

    def stop(self) -> None:
        """At the end of its context."""
        self._enough.set()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()

    def weights(self) -> Tensor:
        """All of them (n,)."""
        return torch.cat([parameter.detach().flatten() for parameter in self.model.parameters()])


class Press:
    """Asks for the same forecast over and over, so that forecasts wait whatever else the machine has to do."""

    def __init__(self, index: int, server: str) -> None:
        self.states = torch.randn(CONTEXT, WIRING.size, generator=torch.Generator().manual_seed(index))
        self.told: list[Tensor] = []  # each once
        self.failed: list[str] = []
        self._endpoint = HttpEndpoint(server, job=f"press-{index}")
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)

    def start(self) -> None:
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
                self._endpoint.forecast(range(0, PERIOD, INTERVAL), (5,), out, progress=None, deadline=Deadline(120))
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
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        self._endpoint.close()


def check(run: Run) -> None:
    """Every nowcast was loaded, and the weights are those of the same run with the forecaster in this process."""
    said = run.nowcast.summary()
    assert said["nowcasts"] == {"used": run.periods, "skipped": 0}, said
    alone = Run("alone", run.seed, server=None)
    with alone.nowcast:
        alone.train(run.periods)
    assert torch.equal(run.weights(), alone.weights()), f"{run.job} loaded something else"


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


def until(happened: Callable[[], object]) -> None:
    """Return once it has happened."""
    deadline = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.5)


def answers(client: httpx2.Client) -> bool:
    """Is it ready?"""
    try:
        return client.get("/readyz", timeout=5).is_success
    except httpx2.TransportError:
        return False


def homes(client: httpx2.Client) -> Counter[str]:
    """How many jobs each replica holds; none that is starting or going."""
    while not (response := client.get("/metrics")).is_success:  # a replica that goes may fail to answer the one that asks
        time.sleep(0.5)
    lines = [line for line in response.text.splitlines() if line.startswith("nowcast_jobs{")]
    return Counter({line.split('replica="')[1].split('"')[0]: int(float(line.split()[-1])) for line in lines})


def names(client: httpx2.Client) -> list[str]:
    """Job ids, half of which the router sends to each of the two replicas."""
    found: dict[str, list[str]] = {}
    for index in count():
        job, before = f"run-{index}", homes(client)
        headers = {"content-type": "application/json", "x-session-id": job}
        assert client.put(f"/v1/jobs/{job}", content=SPEC.model_dump_json(), headers=headers).status_code == 201
        home = homes(client) - before
        assert client.delete(f"/v1/jobs/{job}", headers=headers).status_code == 204
        if len(home) != 1 or homes(client) != before:
            continue  # a press moved meanwhile
        found.setdefault(next(iter(home)), []).append(job)
        if len(found) == 2 and min(map(len, found.values())) >= RUNS // 2:
            return [job for jobs in found.values() for job in jobs[: RUNS // 2]]
    raise AssertionError("unreachable")


def registered_at(client: httpx2.Client) -> dict[str, float]:
    """When each job came to the replica where it is."""
    return {job["job"]: job["created_at"] for job in client.get("/v1/jobs").json()["jobs"]}


def test_replicas_come_and_go_with_the_forecasts(server: httpx2.Client) -> None:
    """Load would not bring a replica, or quiet not end one; or its end would cost jobs their nowcasts, or give them others'."""
    url = str(server.base_url).rstrip("/")
    assert len(homes(server)) == 1
    presses = [Press(index, url) for index in range(PRESSES)]
    for press in presses:
        press.start()
    until(lambda: len(homes(server)) == 2)
    until(lambda: all(homes(server).values()) and homes(server).total() == PRESSES)
    runs = [Run(job, index, server=url) for index, job in enumerate(names(server))]
    for run in runs:
        run.start()
    until(lambda: all(run.periods for run in runs))
    before = registered_at(server)
    assert len(homes(server)) == 2
    for press in presses:
        press.stop()
    until(lambda: len(homes(server)) == 1)  # while the runs ask on
    reached = [run.periods for run in runs]
    until(lambda: all(run.periods >= periods + 2 for run, periods in zip(runs, reached, strict=True)))
    for run in runs:
        run.stop()
    after = registered_at(server)
    moved = [run.job for run in runs if after[run.job] > before[run.job]]
    assert len(moved) == RUNS // 2, "the jobs of the replica that went"
    for run in runs:
        check(run)
    forecaster = load_forecaster("nino")
    for press in presses:
        assert not press.failed
        (told,) = press.told
        assert told.equal(forecaster.forecast(WIRING, press.states, horizons=(5,))), "another job's forecast"
