"""Comparisons: those that are interrupted and gone on with; what they ask of a server."""

import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from protos.messages import Info
from trainer_worker.comparison.compare import _info, _server_for, compare
from trainer_worker.comparison.summary import Summary
from trainer_worker.errors import BadArgument
from trainer_worker.tasks.task import Task
from trainer_worker.training import loop
from trainer_worker.training.config import Config
from trainer_worker.training.records import RunRecord

TOKEN = "a-tokens-text"
INFO = Info(version="1", protocol=1, device="cpu", forecasters=["nino"], max_snapshot_bytes=1, max_memory_bytes=1)


class _Guarded(BaseHTTPRequestHandler):
    """Answers whoever has the token."""

    def do_GET(self) -> None:
        known = self.headers["authorization"] == f"Bearer {TOKEN}"
        body = INFO.model_dump_json().encode() if known and self.path == "/v1/info" else b"{}"
        self.send_response(200 if known else 401)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[str]:
    """A server that asks for a token, with a certificate of its own authority, which is in the file `ca`."""
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    server = HTTPServer(("127.0.0.1", 0), _Guarded)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield f"https://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_server_with_tokens_and_its_own_authority_says_what_it_is(
    guarded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The summary would call the server unavailable that made all of the run's nowcasts."""
    monkeypatch.setenv("NOWCAST_SERVER_CA", str(tmp_path / "ca"))
    monkeypatch.setenv("NOWCAST_TOKEN", TOKEN)
    config = Config.model_validate({"task": {"name": "fm-16"}, "nowcast": {"server": guarded}, "output": {"folder": tmp_path}})
    with _server_for(config) as reached:
        assert _info(**reached) == {"url": guarded, **INFO.model_dump()}
    assert "asks for a login" in (_info(guarded, token=None) or {})["unavailable"]
    monkeypatch.setenv("NOWCAST_SERVER_CA", str(tmp_path / "none"))
    assert "No such file" in (_info(guarded, token=TOKEN) or {})["unavailable"]


def run(folder: Path, *, lr: float = 1e-3, steps: int = 6, resume: bool = False) -> Summary:
    """A small comparison in this process."""
    config = Config.model_validate(
        {
            "task": {"name": "fm-16"},
            "train": {"steps": steps, "batch_size": 8, "lr": lr, "eval_every": 2, "checkpoint_every": 2},
            "nowcast": {"server": "embedded", "forecaster": "linear", "interval": 1, "start": 0.0},
            "workers": {"count": 0, "threads": 1},
            "output": {"folder": folder},
        }
    )
    return compare(config, console=Console(quiet=True), resume=resume)


def curves(summary: Summary) -> list[list[dict[str, Any]]]:
    return [[evaluation.model_dump(exclude={"train_s"}) for evaluation in run.evaluations] for run in summary.runs]


def interrupt(monkeypatch: pytest.MonkeyPatch, *, run: int) -> None:
    """Ctrl-C when so many runs have ended."""
    train, begun = loop.train_in_process, []

    def interrupted(*args: Any, **options: Any) -> RunRecord:
        begun.append(args)
        if len(begun) > run:
            raise KeyboardInterrupt
        return train(*args, **options)

    monkeypatch.setattr(loop, "train_in_process", interrupted)


def test_an_interrupted_comparison_goes_on_with_its_own_configuration_alone(tmp_path: Path, small_fashion: Task) -> None:
    """The other arm's record of an earlier comparison in the same folder would be taken for this one's."""
    run(tmp_path / "a", lr=1e-3)
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, run=1)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "a", lr=3e-2)
    with pytest.raises(BadArgument, match=r"train.lr = 0.03, not 0.001"):
        run(tmp_path / "a", lr=1e-3, resume=True)
    assert curves(run(tmp_path / "a", lr=3e-2, resume=True)) == curves(run(tmp_path / "b", lr=3e-2))


def test_a_finished_comparison_is_read_back_or_made_longer(tmp_path: Path, small_fashion: Task) -> None:
    """Finished runs would be trained again; or an older, shorter one would pass for the longer."""
    first = run(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, run=0)
        assert run(tmp_path, resume=True).runs == first.runs
    longer = run(tmp_path, steps=8, resume=True)
    assert [(run.restores, run.evaluations[-1].step) for run in longer.runs] == [(1, 8), (1, 8)]
    with pytest.raises(BadArgument, match=r"train.steps = 8, not 6"):
        run(tmp_path, resume=True)
