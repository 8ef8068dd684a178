"""The server process a command starts for itself."""

import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from waiting import until

from protos.errors import UnknownJob
from protos.messages import Progress
from trainer_worker.endpoints.client import HttpEndpoint, trusts_environment
from trainer_worker.endpoints.endpoint import Deadline
from trainer_worker.errors import CommandFailed
from trainer_worker.training.own_server import own_server


def test_it_serves_while_open_and_is_gone_after_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server left behind holds its port and memory for ever; by a proxy, or another server's settings, no nowcast would come."""
    monkeypatch.setenv("NOWCAST_TOKEN_FILE", "/nowhere/tokens")
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    addresses: list[str] = []

    def fail() -> None:
        with own_server(log=tmp_path / "server.log") as url:
            addresses.append(url)
            with pytest.raises(UnknownJob):
                HttpEndpoint(url, job="mine").finish(Progress(step=1), deadline=Deadline(10))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"{addresses[0]}/livez", trust_env=False)
    said = (tmp_path / "server.log").read_text()
    assert "stopped" in said
    assert "Fatal" not in said  # nothing that is wrong with it is the last a user reads


@pytest.mark.parametrize(
    ("host", "trusts"), [("127.0.0.1", False), ("::1", False), ("localhost", False), ("10.0.0.7", True), ("nowcast.example", True)]
)
def test_other_machines_are_reached_as_the_environment_says(host: str, *, trusts: bool) -> None:
    """Servers beyond a proxy would be out of reach."""
    assert trusts_environment(host) == trusts


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    """A checkpoint that is none: the server's own words reach the user, at once instead of after a timeout."""
    (tmp_path / "weights.pt").write_bytes(b"no weights")
    with (
        pytest.raises(CommandFailed, match="cannot load the forecasters"),
        own_server(log=tmp_path / "server.log", checkpoint=f"mine={tmp_path / 'weights.pt'}"),
    ):
        pytest.fail("it started")


PARENT = """
import sys, time
from pathlib import Path
from trainer_worker.training.own_server import own_server
with own_server(log=Path(sys.argv[1])) as url:
    print(url, flush=True)
    time.sleep(300)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")
def test_no_server_outlives_a_command_that_was_killed(tmp_path: Path) -> None:
    """The out-of-memory killer would leave a server behind with its port and memory."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path / "server.log")], stdout=subprocess.PIPE, text=True)
    url = parent.stdout.readline().strip()
    assert httpx2.get(f"{url}/livez", trust_env=False).is_success
    parent.kill()
    parent.wait()
    with pytest.raises(httpx2.TransportError):
        until(lambda: not httpx2.get(f"{url}/livez", trust_env=False), within_s=30)
