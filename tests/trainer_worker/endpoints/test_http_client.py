"""How a server is reached."""

import logging

import pytest
from faulty_server import FaultyServer

from protos.errors import Unavailable, UnknownJob
from protos.messages import Progress
from trainer_worker.endpoints.client import HttpEndpoint
from trainer_worker.endpoints.deadline import Deadline
from trainer_worker.endpoints.http_client import http_client
from trainer_worker.errors import BadArgument


def test_a_token_as_it_is_read_from_a_file() -> None:
    """Its line's end would be taken for a server that is down, at every nowcast of the run, and the log would show the token."""
    with http_client("http://localhost:1", token=" a-token\n") as client:
        assert client.headers["authorization"] == "Bearer a-token"
    with http_client("http://localhost:1", token="\n") as client:
        assert "authorization" not in client.headers


@pytest.mark.parametrize("token", ["schlüssel", "two\nlines"])
def test_what_cannot_be_a_token_is_refused_and_not_shown(token: str) -> None:
    """A traceback, or a log with the token in it."""
    with pytest.raises(BadArgument, match="token") as caught:
        http_client("http://localhost:1", token=token)
    assert token not in str(caught.value)


def test_calls_are_not_in_the_log(faulty: FaultyServer, caplog: pytest.LogCaptureFixture) -> None:
    """A line of the HTTP library's for each call would hide the few that a run tells."""
    caplog.set_level(logging.INFO)
    endpoint = HttpEndpoint(faulty.url, job="job")
    with pytest.raises(UnknownJob):
        endpoint.finish(Progress(step=1), deadline=Deadline(60))
    endpoint.close()
    assert caplog.records == []


def test_repeated_calls_say_nothing_where_no_log_is_set_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A user who tries a server that is down would read `stamina.retry_scheduled`, and wonder."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    endpoint = HttpEndpoint("http://127.0.0.1:9", job="job")
    with pytest.raises(Unavailable):
        endpoint.finish(Progress(step=1), deadline=Deadline(5))
    endpoint.close()
    assert capsys.readouterr().err == ""
