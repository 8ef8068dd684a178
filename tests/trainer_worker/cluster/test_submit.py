"""`nowcast submit` on a real Ray cluster of two nodes, with the server on Ray Serve, found by its name."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import stamina
from waiting import until

from trainer_worker.cluster.connection import connect

pytestmark = [pytest.mark.ray, pytest.mark.cluster, pytest.mark.timeout(1800)]

PROJECT = Path(__file__).parent / "users_project"
SCRIPT = PROJECT / "train.py"
BIN = Path(sys.executable).parent
PATIENCE_S = 900.0
"""For a machine with every core taken; on a quiet one, seconds."""


def free_port() -> int:
    """For Ray's job API or Serve's proxy."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@stamina.retry(on=lambda error: "timed out during startup" in str(error), attempts=3, timeout=None)
def patiently(start: Callable[[], Any]) -> Any:
    """Start a node; again if it was too slow for Ray, which gives it 30 s to come up, however busy the machine is."""
    return start()


class TwoNodes:
    """A cluster of two nodes on this machine, with room for one worker each."""

    def __init__(self) -> None:
        self._small: dict[str, Any] = {"object_store_memory": 80 * 2**20}
        self._cluster = patiently(self._start)
        self._second: Any = None
        self.gcs = self._cluster.address
        self.address = f"http://127.0.0.1:{self.port}"

    def _start(self) -> Any:
        from ray.cluster_utils import Cluster

        # Ray's own choice is one port for all agents of a machine: a second cluster's would not start, and take no jobs
        agent = {"dashboard_agent_listen_port": free_port()}
        self.port = free_port()  # another one each time: what did not start in time may hold the first
        head = {**self._small, **agent, "num_cpus": 1, "include_dashboard": True, "dashboard_port": self.port}
        return Cluster(initialize_head=True, head_node_args=head)

    def gain_a_node(self) -> None:
        """The second, unless it is there."""
        if self._second is None:
            self._second = patiently(lambda: self._cluster.add_node(num_cpus=1, **self._small))

    def lose_a_node(self) -> None:
        """As a spot instance goes: without a word."""
        self._cluster.remove_node(self._second, allow_graceful=False)
        self._second = None

    def close(self) -> None:
        """End all processes."""
        self._cluster.shutdown()


@pytest.fixture(scope="module")
def cluster() -> Iterator[TwoNodes]:
    """Two nodes, and a nowcast server on them, started by its command."""
    patience = {f"RAY_SERVE_PROXY_{name}_CHECK_TIMEOUT_S": "60" for name in ("READY", "HEALTH")}
    # RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S stays at a minute: so long Ray Train may wait for a node that is gone
    patience |= {"RAY_worker_register_timeout_seconds": "300", "RAY_worker_niceness": "0"}
    given = {"PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", **patience}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in given.items():
            patch.setenv(name, value)
        nodes = TwoNodes()
        nodes.gain_a_node()
        try:
            # no CPU for the server: Ray Train's elastic count is of what nodes have, not of what is free on them
            options = ["--replicas", "1", "--cpus", "0", "--port", str(free_port()), "--memory", "64MiB", "--no-stay"]
            run("nowcast-server", "serve-on-ray", "--address", nodes.gcs, *options)
            yield nodes
        finally:
            nodes.close()


def run(program: str, *arguments: str, status: int = 0) -> str:
    """Run one of our commands to its end; what it printed."""
    done = subprocess.run([BIN / program, *arguments], capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def logs_until(cluster: TwoNodes, job: str, pattern: str) -> str:
    """The job's log, as soon as it says so."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        text = connect(cluster.address).get_job_logs(job)
        if re.search(pattern, text):
            return text
        time.sleep(0.5)
    raise AssertionError(f"{pattern!r} never came:\n{text}")


def test_a_users_script_survives_the_loss_of_a_node(cluster: TwoNodes, tmp_path: Path) -> None:
    """A lost spot instance would end the run, or cost all of its steps; or the script would not find the server."""
    at, name = ("--address", cluster.address), "train"
    cluster.gain_a_node()
    options = (*at, "--workers", "1:2", "--storage", str(tmp_path / "runs"), "--name", name)
    assert f"submitted {name}" in run("nowcast", "submit", str(PROJECT / f"{name}.py"), *options, "--", "200", "0.1")
    logs_until(cluster, name, r"saved 25\b")
    logs_until(cluster, name, r"rank 1 of 2 from step 0")  # another file, which Ray may read seconds later: the run has to last
    cluster.lose_a_node()
    text = logs_until(cluster, name, r"end at 200")
    resumed = {int(step) for step in re.findall(r"rank 0 of 1 from step (\d+)", text)}
    assert resumed, text
    assert min(resumed) >= 25, "the checkpoint was not used"
    until(lambda: connect(cluster.address).get_job_status(name).is_terminal(), within_s=PATIENCE_S)  # its last line comes before
    assert "succeeded" in run("ray", "job", "status", *at, name)
    assert "take another --name" in run("nowcast", "submit", str(PROJECT / f"{name}.py"), *options, status=2)


def test_a_failure_of_the_script_is_the_commands_own(cluster: TwoNodes, tmp_path: Path) -> None:
    """`nowcast submit -f` would report success for a job that failed, and say nothing of why."""
    script = tmp_path / "wrong.py"
    script.write_text("import os\nraise SystemExit('no such data; see ' + os.environ['NOWCAST_LINK'])")
    options = ("--address", cluster.address, "--server", "embedded", "--max-failures", "0", "-f")
    assert f"no such data; see {cluster.address}/#/jobs/wrong-" in run("nowcast", "submit", str(script), *options, status=1)
