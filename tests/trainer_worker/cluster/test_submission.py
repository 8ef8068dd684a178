"""What a submission sends, and what it refuses to send, without a cluster."""

import shlex
import socket
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import AuthenticationError
from typer.testing import CliRunner, Result

from trainer_worker.cli import app
from trainer_worker.cluster import connection
from trainer_worker.cluster.connection import connect, server_url
from trainer_worker.cluster.script import _parser
from trainer_worker.cluster.submission import (
    Submission,
    Workers,
    config_command,
    config_overrides,
    environment,
    folder_of,
    locate,
    new_id,
    parse_workers,
    script_command,
)
from trainer_worker.errors import CommandFailed


def test_a_scripts_command_line_survives_the_shell() -> None:
    """Arguments with blanks or quotes would reach the script in pieces, or run as commands."""
    arguments = ["--name", "a b", "$(rm -rf /)", "--workers", "7"]
    workers = Workers(2, 8, gpus=0.5, max_failures=-1)
    words = shlex.split(script_command(Path("train.py"), arguments, name="x", workers=workers, storage="s3://bucket/a b"))
    assert words[:3] == ["python", "-m", "trainer_worker.cluster.script"]
    read = _parser().parse_args(words[3:])
    assert (read.script, read.arguments, read.workers, read.gpus) == ("train.py", arguments, "2:8", 0.5)
    assert (read.max_failures, read.storage, read.name) == (-1, "s3://bucket/a b", "x")
    assert script_command(Path("a.py"), ["1"], name="x", workers=None) == "python a.py 1"  # that starts its own workers


def test_a_configurations_command_line_is_valid() -> None:
    """The job would fail on the cluster, over an option that does not exist."""
    from typer.main import get_command

    given = config_overrides(name="x", server="http://a:1", storage="/runs")
    words = shlex.split(config_command(Path("c.toml"), given, resume=True))
    assert words[:3] == ["python", "-m", "trainer_worker"]
    train: Any = get_command(app).commands["train"]  # type: ignore[attr-defined]
    with train.make_context("train", words[4:]) as context:
        assert (context.params["server"], str(context.params["out"])) == ("http://a:1", "/runs/x")
    given = config_overrides(name="x", server="embedded", storage="s3://bucket/runs")
    words = shlex.split(config_command(Path("c.toml"), given, resume=True))
    with train.make_context("train", words[4:]) as context:
        places = [str(context.params[name]) for name in ("storage", "out")]
        assert places == ["s3://bucket/runs/x", "runs/x"]


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Submission]:
    """What a cluster was sent that takes everything."""
    taken: list[Submission] = []
    monkeypatch.setattr(connection, "connect", lambda _: object())
    monkeypatch.setattr(connection, "send", lambda _, submission: taken.append(submission))
    return taken


def submit(folder: Path, text: str, *options: str) -> Result:
    """Submit a configuration of the tiny task."""
    (folder / "c.toml").write_text(f'[task]\nname = "fm-16"\n{text}')
    return CliRunner().invoke(app, ["submit", str(folder / "c.toml"), *options], env={"COLUMNS": "140"})


@pytest.mark.parametrize(("storage", "resume"), [("/runs", True), ("s3://bucket/runs", True), (None, False)])
def test_a_configuration_that_is_sent_again_goes_on(
    storage: str | None, sent: list[Submission], tmp_path: Path, *, resume: bool
) -> None:
    """Its log would ask for an option that `nowcast submit` does not have."""
    assert submit(tmp_path, "", *(("--storage", storage) if storage else ())).exit_code == 0
    assert ("--resume" in shlex.split(sent[0].entrypoint)) == resume


@pytest.mark.parametrize(
    ("text", "server", "option"),
    [
        ("", None, None),
        ("", "http://a:1", "http://a:1"),
        ("[nowcast]\n", "http://a:1", "http://a:1"),
        ("[nowcast]\n", "embedded", "embedded"),
    ],
)
def test_nowcasts_are_made_where_configuration_or_option_asks_for_them(
    text: str, server: str | None, option: str | None, sent: list[Submission], tmp_path: Path
) -> None:
    """A plain run would become one with nowcasts, or be refused because the cluster has no server; or the option be overlooked."""
    assert submit(tmp_path, text, *(("--server", server) if server else ())).exit_code == 0
    words = shlex.split(sent[0].entrypoint)
    assert (words[words.index("--server") + 1] if "--server" in words else None) == option


@pytest.mark.parametrize(
    ("text", "options", "says"),
    [
        ("[trian]\nsteps = 3", [], "unknown table [trian]; did you mean train?"),
        ("steps = ", [], "not valid TOML"),
        ("[nowcast]\nforecaster = '{here}/w'", ["--server", "http://a:1"], "the one at a URL has its own weights"),
        (
            "[nowcast]\nforecaster = './w'",
            ["--server", "embedded"],
            "[nowcast] forecaster: ./w is on this machine, and is not uploaded",
        ),
        ("[workers]\ncount = 0", ["--storage", "s3://bucket/runs"], "keeps its checkpoints in output.folder"),
        ("data = 'pictures'", [], "[task] data: pictures is on this machine, and is not uploaded: leave it out"),
        ("data = '~/pictures'", [], "[task] data: ~/pictures is on this machine"),
    ],
)
def test_what_the_cluster_would_refuse_is_refused_here(
    text: str, options: list[str], says: str, sent: list[Submission], *, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would show there, minutes later, in a log."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w").write_bytes(b"")
    result = submit(tmp_path, text.format(here=tmp_path), *options)
    assert (result.exit_code, sent) == (2, [])
    assert says in result.output


def test_paths_that_all_nodes_may_share_are_sent(sent: list[Submission], tmp_path: Path) -> None:
    """Data and weights on a file system of the cluster's could not be used."""
    (tmp_path / "w").write_bytes(b"")
    result = submit(tmp_path, f"data = '/data/pictures'\n[nowcast]\nforecaster = '{tmp_path}/w'", "--server", "embedded")
    assert (result.exit_code, len(sent)) == (0, 1), result.output


def test_only_the_configuration_is_uploaded(tmp_path: Path) -> None:
    """The whole folder it lies in, perhaps a home directory, would travel to the cluster."""
    (tmp_path / "secret").write_text("x")
    (tmp_path / "c.toml").write_text("[task]\n")
    with folder_of(tmp_path / "c.toml") as folder:
        assert [path.name for path in folder.iterdir()] == ["c.toml"]


@pytest.mark.parametrize("text", ["0", "8:2", "x", "", "1:2:3", "-1"])
def test_impossible_numbers_of_workers(text: str) -> None:
    """The mistake would show on the cluster, minutes later; or an elastic range would be read as one number."""
    assert (parse_workers("3"), parse_workers("2:8")) == ((3, 3), (2, 8))
    with pytest.raises(ValueError):
        parse_workers(text)
    result = CliRunner().invoke(app, ["submit", __file__, f"--workers={text}"])
    assert (result.exit_code, "--workers" in result.output) == (2, True)


def test_a_script_outside_its_working_directory_is_refused(tmp_path: Path) -> None:
    """The upload would lack the script."""
    inside, outside = tmp_path / "project", tmp_path / "other.py"
    inside.mkdir()
    outside.write_text("")
    with pytest.raises(CommandFailed, match="--working-dir"):
        locate(outside, inside)
    assert locate(outside, tmp_path) == (tmp_path, Path("other.py"))


def test_the_environment_points_to_server_and_job() -> None:
    """`Nowcast` in the script would forecast for itself, or call without its token."""
    given = environment("fm-1", server="http://a", token="t", extra={"A": "b"})
    assert given == {"NOWCAST_SERVER": "http://a", "NOWCAST_TOKEN": "t", "NOWCAST_JOB": "fm-1", "PYTHONUNBUFFERED": "1", "A": "b"}
    assert "NOWCAST_SERVER" not in environment("fm-1", server=None, token=None, extra={})
    env = Submission("a", "b", Path("/x"), given, pip=("lightning",)).runtime_env
    assert (env["working_dir"], env["pip"], env["env_vars"]["A"]) == ("/x", ["lightning"], "b")


def test_names_are_new_and_fit_for_job_ids() -> None:
    """A second submission would be refused for its name, or the server would refuse the job's id."""
    from pydantic import TypeAdapter

    from protos.messages import JobId

    names = {new_id(Path("/a/Fine tune (2)!.py")) for _ in range(10)}
    assert len(names) == 10
    for name in names:
        TypeAdapter(JobId).validate_python(name)


def details(**changes: Any) -> dict[str, Any]:
    """What Ray says of Serve."""
    application = {"status": "RUNNING", "route_prefix": "/", "message": "", **changes.pop("application", {})}
    proxies = {"n1": {"node_ip": "10.0.0.7", "status": "STARTING"}, "n2": {"node_ip": "10.0.0.8", "status": "HEALTHY"}}
    http = {"host": "0.0.0.0", "port": 8440}
    return {"applications": {"nowcast": application}, "http_options": http, "proxies": proxies, **changes}


@pytest.mark.parametrize(
    ("server", "given", "url"),
    [
        ("serve:nowcast", {}, "http://10.0.0.8:8440"),
        ("serve:nowcast", {"application": {"route_prefix": "/vision"}}, "http://10.0.0.8:8440/vision"),
        ("serve:nowcast", {"http_options": {"host": "127.0.0.1", "port": 1}}, "http://127.0.0.1:1"),
        ("serve:nowcast", {"http_options": {"host": "::", "port": 1, "ssl_certfile": "c"}}, "https://10.0.0.8:1"),
    ],
)
def test_a_server_is_found_by_name(server: str, given: dict[str, Any], url: str) -> None:
    """Workers would call an address where nothing listens, and skip every nowcast."""
    assert server_url(server, details(**given)) == url


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"applications": {}}, "no Serve application 'nowcast'"),
        ({"application": {"status": "DEPLOYING"}}, "is DEPLOYING"),
        ({"proxies": {}}, "no healthy Serve proxy"),
    ],
)
def test_a_server_that_is_not_there_is_said_at_once(given: dict[str, Any], says: str) -> None:
    """The job would run to its end without one nowcast."""
    with pytest.raises(CommandFailed, match=says):
        server_url("serve:nowcast", details(**given))


def free_port() -> int:
    """Where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_no_cluster_is_one_clear_sentence() -> None:
    """A traceback of Ray's, or minutes of waiting."""
    result = CliRunner().invoke(app, ["submit", __file__, "--address", f"http://127.0.0.1:{free_port()}"])
    assert result.exit_code == 2
    assert "no Ray cluster answers at http://127.0.0.1" in result.output
    assert "--address" in result.output
    assert "Traceback" not in result.output


def test_a_cluster_that_wants_its_token_says_how_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray 2.60 asks for one wherever ~/.ray/auth_token lies, as after `make demo`: the user would read a traceback of Ray's."""

    def refuse(address: str | None) -> None:
        raise AuthenticationError(f"Missing authentication token at {address}")

    monkeypatch.setattr(connection, "JobSubmissionClient", refuse)
    result = CliRunner().invoke(app, ["submit", __file__, "--address", "auto"])
    assert result.exit_code == 2
    assert "RAY_AUTH_MODE=token" in result.output


def test_a_name_that_is_taken_is_one_clear_sentence() -> None:
    """Ray answers with a traceback, of which the user would read the first line, `Traceback (most recent call last):`."""
    with pytest.raises(CommandFailed, match="take another --name"), connection.cluster_errors():
        raise RuntimeError("status code 500: Traceback (most recent call last):\n  x\nValueError: Job with id s already exists.")


def test_the_address_on_the_command_line_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job meant for one cluster would go to that of the environment."""
    asked, meant = free_port(), free_port()
    monkeypatch.setenv("RAY_ADDRESS", f"http://127.0.0.1:{asked}")
    with pytest.raises(CommandFailed, match=str(meant)):
        connect(f"http://127.0.0.1:{meant}")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["none.py"], "there is no file none.py"),
        ([__file__, "--env", "A"], "NAME=VALUE"),
        (["{config}", "--", "x"], "ARGS: for scripts"),
        (["{config}", "--workers", "1"], "a configuration has its own table [workers]"),
        (["{config}", "--driver"], "--driver: for scripts"),
    ],
)
def test_mistakes_are_found_before_anything_is_sent(options: list[str], says: str, tmp_path: Path) -> None:
    """They would show on the cluster, minutes later, in a log."""
    config = tmp_path / "c.toml"
    config.write_text('[task]\nname = "fm-16"\n')
    given = [option.format(config=config) for option in options]
    result = CliRunner().invoke(app, ["submit", *given], env={"COLUMNS": "140"})
    assert result.exit_code == 2
    assert says in result.output
