"""HTTPS with real certificates: who gets in, and that snapshots and forecasts pass as they do without."""

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
import torch
from server_kit import Last, dense, listening

from nowcast_server.app import create_app
from nowcast_server.healthcheck import check
from nowcast_server.running import server_for
from nowcast_server.settings import Settings
from nowcast_server.web import connections
from protos.errors import BadRequest, Unavailable
from protos.messages import JobSpec
from trainer_worker.endpoints.client import HttpEndpoint
from trainer_worker.endpoints.endpoint import Asked, Deadline

trustme = pytest.importorskip("trustme")


class Files:
    """Certificates on disk: an authority, a server's and a client's of it, and a client's of another authority."""

    def __init__(self, folder: Path) -> None:
        ours, others = trustme.CA(), trustme.CA()
        self.ca, self.server, self.client, self.stranger = (folder / name for name in ("ca", "server", "client", "stranger"))
        ours.cert_pem.write_to_path(self.ca)
        ours.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(self.server)
        ours.issue_cert("worker@example.org").private_key_and_cert_chain_pem.write_to_path(self.client)
        others.issue_cert("worker@example.org").private_key_and_cert_chain_pem.write_to_path(self.stranger)

    def context(self, certificate: Path | None = None) -> ssl.SSLContext:
        """A client's that trusts our authority."""
        context = ssl.create_default_context(cafile=self.ca)
        if certificate:
            context.load_cert_chain(certificate)
        return context


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Made once: keys take time."""
    return Files(tmp_path_factory.mktemp("certificates"))


@contextmanager
def https(files: Files, *, mutual: bool) -> Iterator[str]:
    """A server that speaks HTTPS, if `mutual` only to clients of our authority: its address."""
    settings = Settings(tls_cert=files.server, tls_ca=files.ca if mutual else None)
    with listening(create_app(settings, forecasters={"last": Last()}), settings, verify=files.context(files.client)) as client:
        yield str(client.base_url)


def test_only_those_who_know_the_authority_talk_to_each_other(files: Files) -> None:
    """The server would answer in plain text; a client take any server for ours; or whoever reaches the port get in."""
    with https(files, mutual=False) as url:
        assert httpx2.get(f"{url}/livez", verify=files.context()).status_code == 200
        with pytest.raises(httpx2.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx2.get(f"{url}/livez")
        with pytest.raises(BadRequest, match="NOWCAST_SERVER_CA"):
            HttpEndpoint(url, job="nobody").info(deadline=Deadline(5))
        with pytest.raises(httpx2.TransportError):
            httpx2.get(f"{url}/livez".replace("https", "http"))
    with https(files, mutual=True) as url:
        assert httpx2.get(f"{url}/livez", verify=files.context(files.client)).status_code == 200
        for context in (files.context(), files.context(files.stranger)):
            with pytest.raises(httpx2.TransportError):
                httpx2.get(f"{url}/livez", verify=context)


def test_a_connection_that_asks_for_nothing_ends(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """Idle connections, or headers without an end, would do behind a certificate what they cannot do without."""
    endless = b"GET /livez HTTP/1.1\r\nhost: x\r\nz: ".ljust(connections.MAX_HEAD_BYTES, b"z")
    with https(files, mutual=False) as url:
        for sent, answer, head_s in ((b"", b"", 0.3), (endless, b"HTTP/1.1 431 ", 60.0)):
            monkeypatch.setattr(connections, "HEAD_S", head_s)
            plain = socket.create_connection(("127.0.0.1", httpx2.URL(url).port or 0), timeout=60)
            with files.context().wrap_socket(plain, server_hostname="127.0.0.1") as connection:
                connection.sendall(sent)
                assert connection.recv(13) == answer


def test_a_worker_streams_through_mutual_tls(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker could not show its certificate."""
    spec = JobSpec(wiring=dense(1000, 1000), context=2, forecaster="last")
    snapshots, out = torch.randn(2, spec.wiring.size), torch.empty(1, spec.wiring.size)
    with https(files, mutual=True) as url:
        monkeypatch.setenv("NOWCAST_SERVER_CA", str(files.ca))
        with pytest.raises(Unavailable):
            HttpEndpoint(url, job="nobody").register(spec, replace=False, deadline=Deadline(5))
        monkeypatch.setenv("NOWCAST_CLIENT_CERT", str(files.client))
        worker = HttpEndpoint(url, job="mine")
        worker.register(spec, replace=False, deadline=Deadline(60))
        for step, snapshot in enumerate(snapshots):
            worker.send(step, snapshot, deadline=Deadline(60))
        worker.forecast(Asked((0, 1), (1,)), out, deadline=Deadline(60))
        worker.close()
    assert torch.equal(out[0], snapshots[1])


def test_a_reload_is_of_all_or_of_nothing(files: Files, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """New tokens would count though the log says that nothing was reloaded; or no new certificate be served."""
    certificate, tokens = tmp_path / "certificate", tmp_path / "tokens"
    certificate.write_bytes(files.server.read_bytes())
    tokens.write_text("alice:0123456789abcdef\n")
    settings = Settings(tls_cert=certificate, token_file=tokens)
    app = create_app(settings, forecasters={"last": Last()})
    server = server_for(app, settings)
    server.config.load()
    tokens.write_text("bob:fedcba9876543210\n")
    certificate.write_text("half a certificate")
    server.reload()
    assert "cannot reload" in caplog.text
    assert app.state.service.tokens.names == {"alice"}
    certificate.write_bytes(files.server.read_bytes())
    server.reload()
    assert app.state.service.tokens.names == {"bob"}


@pytest.mark.parametrize("scheme", ["http", "https", "mutual"])
def test_health_check_of_a_container(files: Files, scheme: str) -> None:
    """Docker would call a server ill for its scheme or address, send work to one that drains, or miss that one is gone."""
    settings = Settings()
    if scheme != "http":
        settings = Settings(tls_cert=files.server, tls_ca=files.ca if scheme == "mutual" else None)
    app = create_app(settings, forecasters={"last": Last()})
    with listening(app, settings, verify=files.context(files.client)) as client:
        seen = settings.model_copy(update={"port": client.base_url.port, "host": "0.0.0.0"})
        assert check(seen) is None
        app.state.service.draining = True
        assert "503" in str(check(seen))
        assert check(seen, "/livez") is None
    assert f"no answer on port {seen.port}:" in str(check(seen))
