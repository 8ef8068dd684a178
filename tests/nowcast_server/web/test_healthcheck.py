"""The containers' health check against real servers: any port, HTTPS, client certificates, a server that drains."""

import ssl
from pathlib import Path

import pytest
from server_kit import Last, listening

from nowcast_server.app import create_app
from nowcast_server.healthcheck import check
from nowcast_server.settings import Settings

trustme = pytest.importorskip("trustme")


def health(settings: Settings, path: str, *, verify: ssl.SSLContext | bool = True, draining: bool = False) -> str | None:
    """What the check finds wrong with a server of these settings, which listens on every address as in a container."""
    app = create_app(settings, forecasters={"last": Last()})
    with listening(app, settings, verify=verify) as client:
        app.state.service.draining = draining
        return check(settings.model_copy(update={"port": client.base_url.port, "host": "0.0.0.0"}), path)


@pytest.mark.parametrize("scheme", ["http", "https", "mutual"])
def test_ready_server_is_healthy(scheme: str, tmp_path: Path) -> None:
    """Docker would call a server ill, and start nothing that waits for it, because it speaks HTTPS or has another port."""
    settings, context = Settings(), ssl.create_default_context()
    if scheme != "http":
        authority, certificate, ca = trustme.CA(), tmp_path / "server", tmp_path / "ca"
        authority.cert_pem.write_to_path(ca)
        authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(certificate)
        context.load_verify_locations(ca)
        context.load_cert_chain(certificate)
        settings = Settings(tls_cert=certificate, tls_ca=ca if scheme == "mutual" else None)
    assert health(settings, "/readyz", verify=context) is None


def test_draining_server_is_alive_but_not_ready() -> None:
    """A server that refuses work would be sent more; or one that drains would be killed."""
    assert "503" in str(health(Settings(), "/readyz", draining=True))
    assert health(Settings(), "/livez", draining=True) is None


def test_missing_server_is_ill() -> None:
    """A container whose server is gone would count as healthy."""
    assert "no answer on port 1:" in str(check(Settings(port=1)))
