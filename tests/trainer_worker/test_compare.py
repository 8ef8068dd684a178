"""Comparisons: what is sent to the server."""

import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from trainer_worker.compare import _info, _token
from trainer_worker.config import NowcastTable
from trainer_worker.records import Arm

TOKEN = "a-tokens-text"


class _Guarded(BaseHTTPRequestHandler):
    """Answers whoever has the token."""

    def do_GET(self) -> None:
        known = self.headers["authorization"] == f"Bearer {TOKEN}"
        body = b'{"forecasters": ["nino"]}' if known and self.path == "/v1/info" else b"{}"
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
    monkeypatch.setenv("NOWCAST_TLS_CA", str(tmp_path / "ca"))
    monkeypatch.setenv("NOWCAST_TOKEN", TOKEN)
    arms = [Arm(name="adam"), Arm(name="adam+nino", nowcast=NowcastTable(server=guarded))]
    assert _info(guarded, token=_token(arms)) == {"url": guarded, "forecasters": ["nino"]}
    assert _info(guarded, token=None) == {"url": guarded, "unavailable": "status 401"}
    monkeypatch.setenv("NOWCAST_TLS_CA", str(tmp_path / "none"))
    assert "No such file" in (_info(guarded, token=TOKEN) or {})["unavailable"]
    assert _token([Arm(name="adam+nino", nowcast=NowcastTable(server="own"))]) is None
