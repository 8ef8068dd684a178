"""The page over HTTP: whose jobs it shows, what it refuses, and that nothing of what others wrote becomes code."""

import re

import pytest
from server_kit import TOKENS, Start, bearer, tell, token

from nowcast_server.web.page import routes
from protos.wiring import Block, Parameter, Wiring

PAGES = ("/", "/login", "/jobs/job", "/jobs/none", "/jobs/job/wiring")


def test_pages_show_what_the_worker_told(start: Start) -> None:
    """A new user would look at an empty page; or nobody could see how a run is doing, or which layers can be forecast."""
    assert 'server="http://testserver"' in start().client.get("/").text.replace("&#34;", '"')
    caller = start()
    caller.put("job", about={"lr": 0.003, "seed": 7, "link": "http://head:8265/#/jobs/fm-1"})
    tell(caller.service, "job", range(10, 250, 10), used=0, skipped={"late": 1})  # each message repeats all counts
    tell(caller.service, "job", range(250, 500, 10), skipped={"late": 2, "busy": 1}, layers={"conv.1": 0.61, "<b>": -0.2})
    row, page = caller.client.get("/").text, caller.client.get("/jobs/job").text
    for text in ("490", "gliding", "<polyline", "0.7"):
        assert text in row
    for text in ("of 2,000", "2 forecasts were skipped: the forecast did not come in time.", "not known. It takes a run"):
        assert page.count(text) == 1
    assert page.count("skipped:") == 2
    for text in ('href="http://head:8265/#/jobs/fm-1"', "0.003", "conv.1", "0.61", "&lt;b&gt;", "-0.2"):
        assert text in page
    caller.put("other")
    assert "The job's page at" not in caller.client.get("/jobs/other").text


def test_steps_saved_are_counted_against_a_shadow_run_of_the_same_network(start: Start) -> None:
    """The page would claim steps saved where nothing can be known, or hide what can."""
    caller = start()
    caller.put("shadow", mode="shadow")
    tell(caller.service, "shadow", range(10, 2000, 10))
    caller.put("glide")
    tell(caller.service, "glide", range(10, 500, 10), speed=2.0)
    page = caller.client.get("/jobs/glide").text
    estimate = re.search(r"Steps saved, an estimate</span><b>\+(\d+) \(\+(\d+) to \+(\d+)\)</b>", page)
    assert estimate is not None, page
    steps, low, high = map(int, estimate.groups())
    assert low < steps < high
    assert 400 < steps < 500
    assert 'href="/jobs/shadow"' in page


def test_tenant_sees_its_own_jobs_alone(start: Start) -> None:
    """A token would open other people's runs, or tell from the server's memory and queue what others do."""
    caller = start(tokens=TOKENS)
    alice, bob, operator = map(bearer, ("alice", "bob", "operator"))
    caller.put("job", headers=alice)
    assert 'href="/jobs/job"' in caller.client.get("/", headers=alice).text
    assert 'href="/jobs/job"' not in caller.client.get("/", headers=bob).text
    for path in ("/jobs/job", "/jobs/job/wiring"):
        assert [caller.client.get(path, headers=who).status_code for who in (alice, bob)] == [200, 404]
    shown = ["Memory for snapshots" in caller.client.get("/", headers=who).text for who in (alice, operator)]
    assert shown == [False, True]


def test_login_keeps_the_token_where_no_script_and_no_other_site_reaches_it(start: Start) -> None:
    """The token could be stolen by a script, be used by another site's request, or be another site's choice."""
    client = start(tokens=TOKENS).client
    assert client.get("/", follow_redirects=False).headers["location"] == "/login"
    assert client.post("/login", data={"token": "wrong" * 4}).status_code == 401
    answer = client.post("/login", data={"token": token("alice")}, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert "max-age" not in cookie
    assert client.get("/").status_code == 200
    assert client.get("/v1/jobs").status_code == 401  # the cookie is the page's alone
    client.post("/logout")
    assert client.get("/", follow_redirects=False).status_code == 303
    other_site = client.post("/login", data={"token": token("alice")}, headers={"sec-fetch-site": "cross-site"})
    assert other_site.status_code == 403
    assert "set-cookie" not in other_site.headers


def test_pages_run_no_script_but_the_servers_own(start: Start) -> None:
    """One careless template, and what a worker sends, as names of parameters, is run in the browser of who looks."""
    name = "<script>alert(1)</script>.\"'>"
    wiring = Wiring((Parameter(name, (3, 4)),), 7, (Block(1, 0, 4, 4, 3, parameter=0, source_stride=1, target_stride=4),))
    caller = start()
    caller.put("job", wiring=wiring.to_dict())
    assert "&lt;script&gt;" in caller.client.get("/jobs/job/wiring").text
    for path in PAGES:
        answer = caller.client.get(path)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
        assert "unsafe" not in policy
        assert re.findall(r"<script(?![^>]*\bsrc=)", answer.text) == []
        assert re.findall(r"\s(?:on\w+|style)=", answer.text) == []
        assert re.findall(r"(?:src|href)=[\"'](?:https?:)?//", answer.text) == []


def test_viewers_are_limited(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages left open everywhere would take the server's time from training runs."""
    monkeypatch.setattr(routes, "MAX_VIEWERS", 0)
    answer = start().client.get("/events")
    assert (answer.status_code, answer.json()["code"]) == (429, "busy")
