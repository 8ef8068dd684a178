"""`nowcast submit` on a real Ray cluster of two nodes, with the server on Ray Serve, found by its name."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from trainer_worker.cluster.connection import connect

pytestmark = [pytest.mark.ray, pytest.mark.cluster, pytest.mark.timeout(900)]

SCRIPT = Path(__file__).parent / "users_project" / "train.py"
BIN = Path(sys.executable).parent
PATIENCE_S = 200.0
"""For a machine with every core taken; on a quiet one, seconds."""


def free_port() -> int:
    """For Ray's job API or Serve's proxy."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class TwoNodes:
    """A cluster of two nodes on this machine, with room for one worker each."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        small: dict[str, Any] = {"object_store_memory": 80 * 2**20}
        # Ray's own choice is one port for all agents of a machine: a second cluster's would not start, and take no jobs
        agent = {"dashboard_agent_listen_port": free_port()}
        self.port = free_port()
        head = {**small, **agent, "num_cpus": 1, "include_dashboard": True, "dashboard_port": self.port}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self._second = self._cluster.add_node(num_cpus=1, **small)
        self.gcs = self._cluster.address
        self.address = f"http://127.0.0.1:{self.port}"

    def lose_a_node(self) -> None:
        """As a spot instance goes: without a word."""
        self._cluster.remove_node(self._second, allow_graceful=False)

    def close(self) -> None:
        """End all processes."""
        self._cluster.shutdown()


@contextmanager
def variables(**values: str) -> Iterator[None]:
    """What the nodes inherit."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="module")
def cluster() -> Iterator[TwoNodes]:
    """Two nodes, and a nowcast server on them, started by its command."""
    patience = {f"RAY_SERVE_PROXY_{name}_CHECK_TIMEOUT_S": "60" for name in ("READY", "HEALTH")}
    patience["RAY_worker_niceness"] = "0"
    given = {"PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", **patience}
    with variables(**given):
        nodes = TwoNodes()
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
    at = ("--address", cluster.address)
    storage = str(tmp_path / "runs")
    submitted = run(
        "nowcast", "submit", str(SCRIPT), *at, "--workers", "1:2", "--storage", storage, "--name", "mine", "--", "200", "0.02"
    )
    assert "submitted mine" in submitted
    text = logs_until(cluster, "mine", r"saved 25")
    assert "rank 1 of 2 from step 0" in text
    cluster.lose_a_node()
    text = logs_until(cluster, "mine", r"end at 200")
    resumed = {int(step) for step in re.findall(r"rank 0 of 1 from step (\d+)", text)}
    assert resumed, text
    assert min(resumed) >= 25, "the checkpoint was not used"
    assert "end at 200" in run("nowcast", "logs", "-f", "mine", *at)
    status = logs_status(cluster, "mine")
    assert "mine: succeeded" in status
    assert re.search(r"mine-\w+ on http://127.0.0.1:\d+: \d+ snapshots, \d+ nowcasts; jumps: \d+ accepted", status), status
    assert re.search(r"mine +succeeded", run("nowcast", "jobs", *at))


def logs_status(cluster: TwoNodes, job: str) -> str:
    """The job's status once it has ended."""
    deadline = time.monotonic() + PATIENCE_S
    while "running" in (status := run("nowcast", "status", job, "--address", cluster.address)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return status


def test_a_job_is_stopped(cluster: TwoNodes, tmp_path: Path) -> None:
    """A job that is no longer wanted would hold its workers; its name would be reused for another."""
    at = ("--address", cluster.address)
    options = ("--storage", str(tmp_path), "--name", "long", "--server", "none")
    run("nowcast", "submit", str(SCRIPT), *at, *options, "--", "1000000", "0.01")
    logs_until(cluster, "long", r"saved 25")
    assert "refuses" in run("nowcast", "submit", str(SCRIPT), *at, *options, status=2)
    assert "long: stopped" in run("nowcast", "stop", "long", *at)
    assert "long: stopped" in run("nowcast", "status", "long", *at)
    assert "knows no submission 'nobody'" in run("nowcast", "status", "nobody", *at, status=2)


def test_a_failure_of_the_script_is_the_commands_own(cluster: TwoNodes, tmp_path: Path) -> None:
    """`nowcast submit -f` would report success for a job that failed, and say nothing of why."""
    script = tmp_path / "wrong.py"
    script.write_text("raise SystemExit('no such data')")
    options = ("--address", cluster.address, "--server", "none", "--max-failures", "0", "-f")
    assert "no such data" in run("nowcast", "submit", str(script), *options, status=1)
