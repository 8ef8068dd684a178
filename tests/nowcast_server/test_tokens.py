"""Tokens and tenants: who may call, and that nobody sees what is another's."""

import secrets
from pathlib import Path

import pytest
from server_kit import Caller, Start, refused
from typer.testing import CliRunner

from nowcast_server.cli import app
from nowcast_server.settings import Settings
from nowcast_server.tokens import Tokens, digest
from protos.errors import Unauthorized

ALICE, BOB, WATCH = "alice-token-0123456789", "bob-token-0123456789abc", "operator-token-0123456789"


def test_a_tenant_that_no_server_takes_gets_no_token() -> None:
    """The line would be refused when the server starts, after the token was handed out."""
    assert CliRunner().invoke(app, ["token", "team-a"]).exit_code == 0
    said = CliRunner().invoke(app, ["token", "team a"])
    assert said.exit_code == 2
    assert "sha256" not in said.output


@pytest.fixture
def tenants(start: Start) -> tuple[Caller, Caller]:
    caller = start(tokens=f"alice:{ALICE},bob:sha256:{digest(BOB).hex()},operator:{WATCH}")
    return tuple(caller.as_job("job", authorization=f"Bearer {token}") for token in (ALICE, BOB))  # type: ignore[return-value]


def test_no_token(tenants: tuple[Caller, Caller]) -> None:
    """Anyone could read or spoil a run."""
    alice, _ = tenants
    alice.register()
    for authorization in ("", "Bearer wrong", "Basic " + ALICE, ALICE, "Bearer", f"Bearer {ALICE}x", f"bearer  {BOB[:-1]}"):
        stranger = alice.as_job("job", authorization=authorization)
        for response in (
            stranger.register(),
            stranger.upload(10),
            stranger.nowcast(),
            stranger.client.get("/v1/info", headers=stranger.headers),
        ):
            refused(response, 401, "unauthorized", "authorization")
            assert response.headers["www-authenticate"] == "Bearer"
    assert alice.steps() == []
    assert [alice.client.get(path).status_code for path in ("/livez", "/readyz", "/")] == [200, 200, 200]  # for load balancers
    refused(alice.client.get("/metrics"), 401, "unauthorized")
    refused(alice.client.get("/metrics", headers=alice.headers), 403, "forbidden")  # totals tell what others do
    assert alice.client.get("/metrics", headers={"authorization": f"Bearer {WATCH}"}).status_code == 200


def test_tenants_do_not_meet(tenants: tuple[Caller, Caller]) -> None:
    """A tenant would read, write, delete or notice another's job of the same name."""
    alice, bob = tenants
    alice.filled()
    for response in (
        bob.upload(40),
        bob.nowcast(),
        bob.client.get("/v1/jobs/job", headers=bob.headers),
        bob.client.delete("/v1/jobs/job", headers=bob.headers),
        bob.client.post("/v1/jobs/job/finish", headers=bob.headers),
    ):
        refused(response, 404, "unknown_job")
    assert bob.client.get("/v1/jobs", headers=bob.headers).json() == {"jobs": []}
    assert bob.register(context=9).status_code == 201  # the name is free for bob
    assert bob.steps() == []
    assert bob.client.delete("/v1/jobs/job", headers=bob.headers).status_code == 204
    assert alice.steps() == [10, 20, 30]


def test_tokens_for_another_tenant(start: Start, tmp_path: Path) -> None:
    """Read by SIGHUP, they would leave the first tenant all memory of forecasts, as it had alone."""
    path = tmp_path / "tokens"
    path.write_text("alice:0123456789abcdef\n")
    service = start(token_file=path).service
    assert service.forecasts.lend("alice", service.settings.forecast_memory // 2)
    path.write_text("alice:0123456789abcdef\nbob:fedcba9876543210\n")
    service.load_tokens()
    assert service.tokens.names == {"alice", "bob"}
    assert not service.forecasts.lend("alice", 1)


def test_token_file(tmp_path: Path) -> None:
    """A token file would be read wrongly, or a mistake in it let everybody in."""
    path = tmp_path / "tokens"
    made = secrets.token_urlsafe(32)
    path.write_text(f"# who may call\n\nalice:{made}\nbob:sha256:{digest(BOB).hex().upper()}\n")
    tokens = Tokens.load(Settings(token_file=path))
    assert tokens.tenant(f"Bearer {made}") == "alice"
    assert made not in repr(tokens)
    assert tokens.tenant(f"bearer {BOB}") == "bob"
    with pytest.raises(Unauthorized):
        tokens.tenant(f"Bearer {digest(BOB).hex()}")
    path.write_text("# nobody\n")
    with pytest.raises(ValueError, match="no client could call"):
        Tokens.load(Settings(token_file=path))
    path.write_text("alice:alice-alice-alice", encoding="utf-16")  # as some editors do
    with pytest.raises(ValueError, match="not UTF-8"):
        Tokens.load(Settings(token_file=path))
    for line in ("alice", "alice:short", f"alice {made}", f"a/b:{made}", "bob:sha256:12"):
        with pytest.raises(ValueError, match="line 1: ") as error:
            Tokens.parse(line, source="x")
        assert made not in str(error.value)
