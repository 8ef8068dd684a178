"""How a server is reached; what stands before one, or in its place, is named before a run begins."""

import json
import logging
from contextlib import closing

import pytest
import torch
from faulty_server import FaultyServer
from torch import nn

from protos.errors import UnknownJob
from protos.messages import Progress
from trainer_worker import BadArgument, Nowcast
from trainer_worker.endpoints.client import HttpEndpoint
from trainer_worker.endpoints.endpoint import Deadline


def begin(url: str | None) -> Nowcast:
    model = nn.Linear(4, 4)
    return Nowcast(model, torch.optim.Adam(model.parameters()), server=url, max_steps=100, interval=5)


HTML = {"content-type": "text/html"}
NOWHERE = json.dumps({"title": "x", "status": 404, "detail": "Not Found", "code": "not_found"}).encode()
REFUSED = json.dumps(
    {"title": "x", "status": 401, "detail": "send a token", "code": "unauthorized", "field": "authorization"}
).encode()


@pytest.mark.parametrize(
    ("answer", "argument", "says"),
    [
        ((308, {"location": "https://nowcast.example/"}, b""), "server", "redirects to https://nowcast.example/"),
        ((413, HTML, b"<h1>413</h1>"), "server", "client_max_body_size"),
        ((200, HTML, b"<html>login</html>"), "server", "a login stand before it"),
        ((200, {}, b"hello"), "server", "does not answer as a nowcast server"),
        ((404, {}, b"not found"), "server", "does not answer as a nowcast server"),
        ((404, {"content-type": "application/problem+json"}, NOWHERE), "server", "is the address right, up to /v1"),
        ((407, {}, b""), "server", "HTTPS_PROXY as http://USER:PASSWORD@HOST"),
        ((403, HTML, b"<html>"), "server", "status 403"),
        ((403, {"content-type": "application/json"}, b'{"kind": "Status", "code": 403}'), "server", "status 403"),
        ((401, {"content-type": "application/problem+json"}, REFUSED), "token", "NOWCAST_TOKEN"),
    ],
    ids=["redirect", "413", "login", "other service", "404", "wrong path", "407", "403", "Kubernetes", "no token"],
)
def test_a_run_is_told_before_it_begins(
    faulty: FaultyServer, answer: tuple[int, dict[str, str], bytes], argument: str, says: str
) -> None:
    """A run of days would train without one nowcast, for a wrong address."""
    faulty.always = answer
    nowcast = begin(faulty.url)
    with pytest.raises(BadArgument, match=says, check=lambda error: error.argument == argument):
        nowcast.start()


def test_http_is_not_https(faulty: FaultyServer) -> None:
    """A user would start a second server, where one letter of the address is wrong."""
    with pytest.raises(BadArgument, match="no HTTPS is spoken at this address"):
        begin(faulty.url.replace("http://", "https://")).start()


def test_a_server_that_is_down_names_the_command(caplog: pytest.LogCaptureFixture) -> None:
    """A newcomer would not know what should be listening there."""
    with begin("http://127.0.0.1:9") as nowcast:
        pass
    assert "`nowcast-server run` starts one" in nowcast.events[0].detail


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"ALL_PROXY": "socks5h://127.0.0.1:1080"}, "SOCKS proxy"),
        ({"ALL_PROXY": "socks4://127.0.0.1:1080"}, "a proxy of the environment"),
        ({"ALL_PROXY": "http://127.0.0.1:port"}, "a proxy of the environment"),
        ({"SSL_CERT_FILE": "/nonexistent.pem"}, "SSL_CERT_FILE"),
    ],
)
def test_an_environment_that_cannot_work_is_named(variables: dict[str, str], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A traceback of the HTTP library's, which names neither the variable nor the way out."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(BadArgument, match=says):
        begin("http://nowcast.internal:8440")


@pytest.mark.parametrize("value", ["", " \n"])
def test_an_empty_address_is_none(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that a script empties would be refused as an address."""
    monkeypatch.setenv("NOWCAST_SERVER", value)
    with begin(None) as nowcast:
        pass
    assert nowcast.events == []


def test_a_token_as_it_is_read_from_a_file() -> None:
    """Its line's end would be taken for a server that is down, at every nowcast of the run, and the log would show the token."""
    for token, expected in ((" a-token\n", "Bearer a-token"), ("\n", None)):
        with closing(HttpEndpoint("http://localhost:1", job="job", token=token)) as endpoint:
            assert endpoint._client.headers.get("authorization") == expected


@pytest.mark.parametrize("token", ["schlüssel", "two\nlines"])
def test_what_cannot_be_a_token_is_refused_and_not_shown(token: str) -> None:
    """A traceback, or a log with the token in it."""
    with pytest.raises(BadArgument, match="token", check=lambda error: token not in str(error)):
        HttpEndpoint("http://localhost:1", job="job", token=token)


def test_calls_are_not_in_the_log(faulty: FaultyServer, caplog: pytest.LogCaptureFixture) -> None:
    """A line of the HTTP library's for each call would hide the few that a run tells."""
    caplog.set_level(logging.INFO)
    endpoint = HttpEndpoint(faulty.url, job="job")
    with pytest.raises(UnknownJob):
        endpoint.finish(Progress(step=1), deadline=Deadline(60))
    endpoint.close()
    assert caplog.records == []
