"""What a submission sends, and what it refuses to send, without a cluster."""

import json
import os
import shlex
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from aiohttp import ClientError
from pydantic import TypeAdapter
from ray.exceptions import AuthenticationError, RpcError
from ray.job_submission import JobStatus
from typer.testing import CliRunner, Result

from protos.messages import JobId
from trainer_worker.cli import app
from trainer_worker.cluster import connection
from trainer_worker.cluster.connection import connect, follow, server_url
from trainer_worker.cluster.script import folder_of
from trainer_worker.errors import CommandFailed

Job = dict[str, Any]


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """What a cluster was sent that takes everything, with the names of the files it would have got."""
    taken: list[Job] = []

    def send(_: object, job: Job) -> None:
        taken.append({**job, "files": sorted(path.name for path in Path(job["runtime_env"]["working_dir"]).iterdir())})

    monkeypatch.setattr(connection, "connect", lambda _: object())
    monkeypatch.setattr(connection, "send", send)
    return taken


def submit(what: Path, *options: str, **variables: str) -> Result:
    return CliRunner().invoke(app, ["submit", str(what), *options], env={"COLUMNS": "140", **variables})


def test_a_scripts_command_line_survives_the_shell(sent: list[Job], tmp_path: Path) -> None:
    """Arguments with blanks or quotes would reach the script in pieces, or run as commands."""
    script = tmp_path / "Fine tune (2)!.py"
    script.touch()
    arguments = ["--name", "a b", "$(rm -rf /)", "--workers", "7"]
    options = ["--workers", "2:8", "--gpus", "0.5", "--max-failures", "-1", "--storage", "s3://bucket/a b", "--server", "http://a"]
    result = submit(script, *options, "--pip", "lightning", "--env", "A=b", "--", *arguments, NOWCAST_TOKEN="t")
    assert result.exit_code == 0, result.output
    words = shlex.split(sent[0]["entrypoint"])
    assert words[:3] == ["python", "-m", "trainer_worker.cluster.script"]
    given = {"workers": [2, 8], "cpus": 1, "gpus": 0.5, "max_failures": -1, "storage": "s3://bucket/a b"}
    assert json.loads(words[3]) == {"name": sent[0]["submission_id"], **given}
    assert words[4:] == [script.name, *arguments]
    env = sent[0]["runtime_env"]
    assert (env["pip"], sent[0]["files"]) == (["lightning"], [script.name])
    told = {"NOWCAST_SERVER": "http://a", "NOWCAST_TOKEN": "t", "NOWCAST_JOB": sent[0]["submission_id"], "A": "b"}
    assert env["env_vars"] == {**told, "PYTHONUNBUFFERED": "1"}
    assert submit(script, "--driver", "--server", "embedded", "--", "1").exit_code == 0  # it starts its own workers
    assert shlex.split(sent[1]["entrypoint"]) == ["python", script.name, "1"]
    assert "NOWCAST_SERVER" not in sent[1]["runtime_env"]["env_vars"]
    names = {job["submission_id"] for job in sent}
    assert len({TypeAdapter(JobId).validate_python(name) for name in names}) == 2


@pytest.mark.parametrize("text", ["0", "8:2", "x", "", "1:2:3", "-1"])
def test_impossible_numbers_of_workers(text: str) -> None:
    """The mistake would show on the cluster, minutes later; or an elastic range would be read as one number."""
    result = submit(Path(__file__), f"--workers={text}")
    assert (result.exit_code, "--workers" in result.output) == (2, True)


def test_scripts_that_would_not_arrive_are_refused(sent: list[Job], tmp_path: Path) -> None:
    """The upload would lack the script."""
    (tmp_path / "project").mkdir()
    (tmp_path / "other.py").write_text("")
    options = ("--server", "embedded", "--working-dir")
    assert "--working-dir" in submit(tmp_path / "other.py", *options, str(tmp_path / "project")).output
    assert "there is no file none.py" in submit(Path("none.py")).output
    assert "NAME=VALUE" in submit(tmp_path / "other.py", "--env", "A").output
    assert "give a whole path" in submit(tmp_path / "other.py", "--storage", "runs").output  # checkpoints would go with the upload
    (tmp_path / "c.toml").touch()
    assert "ray job submit --working-dir . -- nowcast train" in submit(tmp_path / "c.toml").output
    assert "give a URL, serve:NAME" in submit(tmp_path / "other.py", "--server", "localhost:1").output
    for option, value in (("--storage", "s3://mine"), ("--gpus", "1"), ("--workers", "1:2")):  # the script would not hear of it
        assert f"leave out {option}" in submit(tmp_path / "other.py", "--driver", option, value).output
    assert sent == []
    assert submit(tmp_path / "other.py", *options, str(tmp_path)).exit_code == 0


def details(**changes: Any) -> dict[str, Any]:
    """What Ray says of Serve."""
    application = {"status": "RUNNING", "route_prefix": "/", "message": "", **changes.pop("application", {})}
    proxies = {"n1": {"node_ip": "10.0.0.7", "status": "STARTING"}, "n2": {"node_ip": "10.0.0.8", "status": "HEALTHY"}}
    http = {"host": "0.0.0.0", "port": 8440}
    return {"applications": {"nowcast": application}, "http_options": http, "proxies": proxies, **changes}


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ({}, "http://10.0.0.8:8440"),
        ({"application": {"route_prefix": "/vision"}}, "http://10.0.0.8:8440/vision"),
        ({"http_options": {"host": "127.0.0.1", "port": 1}}, "http://127.0.0.1:1"),
        ({"http_options": {"host": "::", "port": 1, "ssl_certfile": "c"}}, "https://10.0.0.8:1"),
        ({"applications": {}}, "no Serve application 'nowcast'"),
        ({"application": {"status": "DEPLOYING"}}, "is DEPLOYING"),
        ({"proxies": {}}, "no healthy Serve proxy"),
    ],
)
def test_a_server_is_found_by_name_or_missed_at_once(given: dict[str, Any], url: str) -> None:
    """Workers would call an address where nothing listens, and the job run to its end without one nowcast."""
    if url.startswith("http"):
        assert server_url("nowcast", details(**given)) == url
    else:
        with pytest.raises(CommandFailed, match=url):
            server_url("nowcast", details(**given))


@pytest.mark.timeout(30)
@pytest.mark.parametrize("address", ["http://127.0.0.1:{}", "127.0.0.1:{}"])
def test_no_cluster_is_one_clear_sentence_about_the_one_that_was_meant(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A traceback of Ray's, or minutes of waiting; or a job for one cluster would go to that of the environment."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        meant = address.format(silent.getsockname()[1])
        monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:9")
        result = submit(Path(__file__), "--address", meant)
    assert result.exit_code == 2
    assert f"no Ray cluster answers at {meant}: " in result.output
    assert "give --address" in result.output
    assert "Traceback" not in result.output
    assert "RAY_ADDRESS" not in os.environ


def test_a_cluster_that_wants_its_token_says_how_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray 2.60 asks for one wherever ~/.ray/auth_token lies, as after `make demo`: the user would read a traceback of Ray's."""
    monkeypatch.setattr(connection, "JobSubmissionClient", Mock(side_effect=AuthenticationError("Missing authentication token")))
    with pytest.raises(CommandFailed, match="RAY_AUTH_MODE=token"):
        connect("auto")


def test_what_listens_but_is_no_cluster_is_told_as_that(monkeypatch: pytest.MonkeyPatch) -> None:
    """HEAD:8265 without http:// would end in a traceback of Ray's."""
    monkeypatch.setattr(connection, "JobSubmissionClient", Mock(side_effect=RpcError("Timed out")))
    with pytest.raises(CommandFailed, match=r"no Ray cluster answers at auto: Timed out; give --address, e.g. http://"):
        connect("auto")


@pytest.mark.parametrize("error", [None, RuntimeError("WebSocket closed with code 1006"), ClientError()])
def test_a_job_whose_log_is_cut_off_goes_on(error: Exception | None) -> None:
    """A port that is no longer forwarded would pass for a cluster that refuses, or for a job that failed."""

    class Cut:
        async def tail_job_logs(self, _: str) -> AsyncIterator[str]:
            yield "step 1"
            if error is not None:
                raise error

        def get_job_status(self, _: str) -> JobStatus:
            return JobStatus.RUNNING

        def get_job_info(self, _: str) -> SimpleNamespace:
            return SimpleNamespace(status=JobStatus.RUNNING, message="Job is currently running.")

    with pytest.raises(CommandFailed, match="the job goes on: ray job logs --follow mine"):
        follow(Cut(), "mine")  # type: ignore[arg-type]


def test_a_scripts_own_folder_is_where_ray_keeps_its_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints would go to a folder named ~, or to one named s3:."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert [folder_of("mine", storage) for storage in ("~/runs", "s3://x", None)] == [str(tmp_path / "runs" / "mine"), None, None]
