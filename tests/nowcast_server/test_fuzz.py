"""Generated calls: whatever is sent, the answer is a success or a problem the protocol knows, and the job stays as it was."""

import json
import os
from typing import Any

import httpx2
import schemathesis
import torch
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from server_kit import Caller, Last, frames

from nowcast_server.app import create_app
from nowcast_server.settings import Settings
from protos.errors import ERRORS
from protos.frames import MEDIA_TYPE

CASES = int(os.environ.get("NOWCAST_FUZZ_CASES", "150"))
"""Per test; `NOWCAST_FUZZ_CASES=10000` for the long run."""

FUZZ = settings(max_examples=CASES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
KNOWN = {(error.status, code) for code, error in ERRORS.items()} - {(500, "internal")}


def _check(caller: Caller, response: Any) -> bool:
    if response.status_code < 300:
        return True
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert (response.status_code, problem["code"]) in KNOWN
    assert not caller.entry.history.in_use
    return False


GOOD = frames(torch.arange(12.0), step=10, chunk_bytes=20)
EDIT = st.tuples(
    st.sampled_from(["set", "insert", "delete", "repeat"]), st.integers(0, len(GOOD) - 1), st.binary(min_size=1, max_size=12)
)


def _edited(edits: list[tuple[str, int, bytes]]) -> bytes:
    body = bytearray(GOOD)
    for kind, position, data in edits:
        after = position + (0 if kind == "insert" else len(data))
        body[position:after] = {"set": data, "insert": data, "delete": b"", "repeat": body[position:after] * 2}[kind]
    return bytes(body)


@FUZZ
@given(body=st.one_of(st.binary(max_size=300), st.lists(EDIT, min_size=1, max_size=4).map(_edited)))
def test_uploads(caller: Caller, body: bytes) -> None:
    """Some damaged stream would be stored as if it were whole, or bring the server down."""
    if _check(caller, caller.upload(10, body)):
        context = caller.entry.history.read([10])
        assert context.states[0].isfinite().all()
        caller.entry.history.release(context)
        caller.client.delete("/v1/jobs/job")
        caller.register()
    assert caller.steps() == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
VALUE = JSON | st.integers(-3, 70)
BLOCK = st.lists(st.one_of(st.integers(-2, 15), st.integers(), st.booleans(), st.floats()), min_size=11, max_size=13)
WIRING = st.fixed_dictionaries(
    {
        "parameters": st.lists(st.tuples(st.text(max_size=3), st.lists(st.integers(-1, 9), max_size=3)), max_size=3) | JSON,
        "neurons": st.integers(-1, 99) | JSON,
        "blocks": st.lists(BLOCK, max_size=3) | JSON,
    }
)
SPEC = st.fixed_dictionaries(
    {"wiring": WIRING | JSON}, optional={"context": VALUE, "mode": VALUE, "dtype": VALUE, "forecaster": st.just("last") | VALUE}
)


@FUZZ
@given(spec=SPEC | JSON, blanks=st.sampled_from([0, 70_000]))
def test_registrations(caller: Caller, spec: Any, blanks: int) -> None:
    """Some wiring that makes no sense would be taken in, or bring the server down; a long body is parsed by other code."""
    content = json.dumps(spec) + blanks * " "
    response = caller.client.put("/v1/jobs/other", content=content, headers={"content-type": "application/json"})
    if response.status_code == 201:
        assert response.json()["parameters"] > 0
        assert caller.client.delete("/v1/jobs/other").status_code == 204
    else:
        _check(caller, response)
    assert len(caller.service.jobs) == 1


PROGRESS = st.fixed_dictionaries(
    {"step": st.integers(0, 40) | VALUE},
    optional={
        "used": VALUE,
        "skipped": st.dictionaries(st.text(max_size=8), VALUE, max_size=3) | VALUE,
        "loss": VALUE,
        "gain": VALUE,
    },
)
REQUEST = st.fixed_dictionaries(
    {"context": st.just([10, 20, 30]) | st.lists(VALUE)}, optional={"horizons": st.lists(VALUE) | VALUE, "dtype": VALUE}
)


@FUZZ
@given(progress=PROGRESS | JSON, request=REQUEST | JSON)
def test_what_comes_with_a_snapshot(caller: Caller, progress: Any, request: Any) -> None:
    """Some odd header would bring the server down, or be stored with a snapshot that was refused."""
    if caller.steps() != [10, 20]:
        caller.client.delete("/v1/jobs/job")
        assert caller.register().status_code == 201
        caller.fill(10, 20)
    try:
        body = frames(caller.values(30), step=30, progress=progress, request=request)
    except (OverflowError, UnicodeEncodeError):  # nothing that msgpack could say
        reject()
    came = _check(caller, caller.upload(30, body))
    assert caller.steps() == ([10, 20, 30] if came else [10, 20])
    assert caller.service.forecasts.used_bytes == 0


@schemathesis.serializer(MEDIA_TYPE)
def _as_bytes(_: schemathesis.SerializationContext, value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")


schema = schemathesis.openapi.from_dict(create_app(Settings(), forecasters={"last": Last()}).openapi())


@schema.parametrize()
@settings(max_examples=max(5, CASES // 15), deadline=None, suppress_health_check=list(HealthCheck))
def test_the_api_as_it_describes_itself(caller: Caller, case: schemathesis.Case) -> None:
    """Some call that the OpenAPI description allows, or just does not, would be answered by a failure of the server."""
    call = case.as_transport_kwargs(base_url="http://testserver")
    call["content"] = call.pop("data", None)
    try:
        request = caller.client.build_request(**{name: value for name, value in call.items() if value is not None})
    except (TypeError, UnicodeEncodeError, httpx2.InvalidURL):  # nothing that could be sent
        reject()
    response = caller.client.send(request)
    assert response.status_code < 500 or response.status_code in {503, 504, 507}, response.text
    if response.status_code >= 400:
        assert (response.status_code, response.json()["code"]) in KNOWN
