"""Two replicas behind Serve's proxy act as one server."""

import os
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpx2
import pytest
import ray
import server_kit
import torch
from server_kit import TOKENS, Caller, bearer, frames, read_forecasts, token, until
from torch import nn

from protos.messages import JobSpec
from trainer_worker.wiring import wire

pytestmark = [pytest.mark.ray, pytest.mark.slow]
PATIENCE = ("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S")
os.environ.update(dict.fromkeys(PATIENCE, "60"))  # read by Ray's processes, which the session's cluster starts later

NET = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
SPEC = JobSpec(wiring=wire(NET), context=3, forecaster="linear")
homes = partial(server_kit.homes, **bearer("operator"))


@pytest.fixture(scope="module")
def serve_url(ray_cluster: None) -> Iterator[str]:
    """The server's address; two replicas, three tenants. For one module: its replicas hold CPUs that training waits for."""
    from ray import serve

    from nowcast_server.serve.application import Replicas, start

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {"port": port, "memory": "256MiB", "tokens": TOKENS}
    yield start(settings, replicas=Replicas(2, 2, cpus=0.1))
    serve.shutdown()


@pytest.fixture
def client(serve_url: str) -> Iterator[httpx2.Client]:
    """Calls as a tenant."""
    with httpx2.Client(base_url=serve_url, headers=bearer("alice"), timeout=60) as calls:
        yield calls


def as_job(client: httpx2.Client, name: str, **headers: str) -> Caller:
    """Calls as a job, to the replica its id leads to."""
    return Caller(client, None, SPEC.wiring, name, {"x-session-id": name, **headers})  # type: ignore[arg-type]


def states(seed: int) -> torch.Tensor:
    """A context (3, n) that no other job has."""
    return torch.randn(3, SPEC.wiring.size, generator=torch.Generator().manual_seed(seed))


def expected(context: torch.Tensor) -> torch.Tensor:
    """What the same forecaster says in this process."""
    from nowcast_server.forecasters import load_forecaster

    return load_forecaster("linear").forecast(SPEC.wiring, context, horizons=(1, 4))


@pytest.fixture
def jobs(client: httpx2.Client) -> Iterator[list[str]]:
    """Sixteen registered jobs."""
    names = [f"job-{index}" for index in range(16)]
    for name in names:
        assert as_job(client, name).register(forecaster="linear").status_code == 201
    yield names
    for name in names:
        client.delete(f"/v1/jobs/{name}", headers={"x-session-id": name})


def test_every_job_stays_on_its_replica(client: httpx2.Client, jobs: list[str]) -> None:
    """A job's snapshots would be scattered over replicas, and no replica would ever hold a whole context."""
    contexts = {name: states(index) for index, name in enumerate(jobs)}

    def run(name: str) -> None:
        for step, values in zip((10, 20, 30), contexts[name], strict=True):
            assert as_job(client, name).upload(step, frames(values, step=step)).is_success
        _, forecasts = read_forecasts(as_job(client, name).nowcast(horizons=(1, 4)).content)
        assert torch.equal(forecasts, expected(contexts[name])), "another job's weights, or none"

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(run, jobs))
    counts = homes(client)
    assert len(counts) == 2
    assert sum(counts.values()) == len(jobs)
    assert all(counts.values()), "the router sends everything to one replica"


def test_lists_status_and_metrics_speak_for_all_replicas(client: httpx2.Client, jobs: list[str]) -> None:
    """What a list or a scrape says would depend on which replica the proxy happened to ask."""
    for _ in range(4):
        assert {each["job"] for each in client.get("/v1/jobs").json()["jobs"]} == set(jobs)
        assert sum(homes(client).values()) == len(jobs)
    assert all(client.get(f"/v1/jobs/{name}").json()["job"] == name for name in jobs), "without a session id"
    assert client.get("/v1/jobs/nobody").json()["code"] == "unknown_job"


def test_tenants_see_their_own_jobs_on_all_replicas(client: httpx2.Client, jobs: list[str]) -> None:
    """The calls between replicas would leak one tenant's jobs to another."""
    assert client.get("/v1/jobs", headers=bearer("bob")).json() == {"jobs": []}
    assert client.get(f"/v1/jobs/{jobs[0]}", headers=bearer("bob")).json()["code"] == "unknown_job"
    assert client.delete(f"/v1/jobs/{jobs[0]}", headers=bearer("bob")).status_code == 404
    assert client.get("/metrics").json()["code"] == "forbidden"
    assert as_job(client, jobs[0], **bearer("bob")).register(forecaster="linear").status_code == 201
    assert len(client.get("/v1/jobs").json()["jobs"]) == len(jobs), "b's job of that name pushed out a's"
    assert client.delete(f"/v1/jobs/{jobs[0]}", headers=bearer("bob")).status_code == 204


def test_a_job_is_never_on_two_replicas(client: httpx2.Client) -> None:
    """A history left behind would be taken for the job's own when the job moves back: a forecast from stale weights."""
    job = "mover"
    assert as_job(client, job).register(forecaster="linear").status_code == 201
    assert as_job(client, job).upload(10, frames(states(0)[0], step=10)).is_success
    moved = False
    for _ in range(40):  # without a session id the proxy picks a replica by chance, as if the ring had changed
        response = client.put(f"/v1/jobs/{job}", content=SPEC.model_dump_json(), headers={"content-type": "application/json"})
        moved |= response.status_code == 201
        assert sum(homes(client).values()) == 1
        if moved:
            break
    assert moved
    assert client.get(f"/v1/jobs/{job}").json()["steps"] == [], "the old history came along"
    assert client.delete(f"/v1/jobs/{job}").status_code == 204
    assert sum(homes(client).values()) == 0


def test_a_job_that_moves_stays_its_runs(client: httpx2.Client) -> None:
    """After a change of the ring a run that had lost its job would take it back on another replica: two live runs, one history."""
    spec = {"content": SPEC.model_dump_json()}
    given = {"content-type": "application/json"}  # and no session id: any replica, as if the ring had changed
    asked = [client.put("/v1/jobs/shared", **spec, headers={**given, "x-run-id": "late"}) for _ in range(12)]
    assert {201, 200} == {response.status_code for response in asked}
    for _ in range(12):
        response = client.put("/v1/jobs/shared", **spec, headers={**given, "x-run-id": "early"})
        assert (response.status_code, response.json()["code"], response.json()["field"]) == (409, "run_conflict", "x-run-id")
    assert sum(homes(client).values()) == 1, "the refused run left a job behind, or the job is gone"
    assert client.delete("/v1/jobs/shared", headers={"x-run-id": "restarted"}).status_code == 204
    assert client.put("/v1/jobs/shared", **spec, headers={**given, "x-run-id": "restarted"}).status_code == 201, "a dead run blocks"
    assert client.delete("/v1/jobs/shared").status_code == 204


def test_a_replica_that_dies_takes_nothing_but_its_histories(client: httpx2.Client, jobs: list[str]) -> None:
    """A killed replica would stop its jobs for good, or leave other jobs' forecasts wrong."""
    from ray.serve._private.constants import SERVE_NAMESPACE

    contexts = {name: states(index + 100) for index, name in enumerate(jobs)}
    for name in jobs:
        for step, values in zip((10, 20, 30), contexts[name], strict=True):
            assert as_job(client, name).upload(step, frames(values, step=step)).is_success
    before = homes(client)
    victim = next(iter(before))
    (name,) = [each["name"] for each in ray.util.list_named_actors(all_namespaces=True) if each["name"].endswith(f"#{victim}")]
    ray.kill(ray.get_actor(name, SERVE_NAMESPACE), no_restart=True)
    lost = 0
    for name in jobs:
        found, forecasts = recover(client, name, contexts[name])
        lost += found
        assert torch.equal(forecasts, expected(contexts[name]))
    assert lost >= before[victim]
    until(lambda: len(homes(client)) == 2)  # Serve starts another


def recover(client: httpx2.Client, name: str, context: torch.Tensor) -> tuple[bool, torch.Tensor]:
    """What a worker does: ask; when the job is unknown, register and resend; when the proxy stumbles, come again.

    Returns:
        Whether the job was lost, and its forecasts. It may move once more, when another replica comes up.
    """
    lost, deadline = False, time.monotonic() + 60
    while time.monotonic() < deadline:
        response = as_job(client, name).nowcast(horizons=(1, 4))
        if response.is_success:
            return lost, read_forecasts(response.content)[1]
        if response.status_code == 404:
            lost = True
            as_job(client, name).register(forecaster="linear")
        elif response.status_code == 409:
            for step, values in zip((10, 20, 30), context, strict=True):
                as_job(client, name).upload(step, frames(values, step=step))
        time.sleep(0.1)
    raise AssertionError(response.text)


def test_a_server_under_a_prefix_with_tokens_as_hashes(serve_url: str) -> None:
    """Two servers could not share a cluster; or tokens would lie readable in the cluster's state."""
    from ray import serve

    from nowcast_server.serve.application import deployment
    from nowcast_server.tokens import digest

    hashed = f"x:sha256:{digest(token('x')).hex()}"
    one = deployment.options(num_replicas=1, ray_actor_options={"num_cpus": 0.1})
    serve.run(one.bind({"tokens": hashed, "memory": "1MiB"}), name="second", route_prefix="/second")
    with httpx2.Client(base_url=f"{serve_url}/second", timeout=60) as second:
        assert second.get("/v1/jobs").status_code == 401
        mine = bearer("x")
        info = second.get("/v1/info", headers=mine).json()
        assert info["max_memory_bytes"] == 2**20
        assert info["device_note"] is None  # it asked for no GPU, and takes none that its node may have
        assert as_job(second, "elsewhere", **mine).register(forecaster="linear").status_code == 201
    serve.delete("second")


def test_a_cluster_that_is_joined_is_kept(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller's own cluster, and all that runs on it, would be ended for one of the server's."""
    import ray

    from nowcast_server.serve import application

    mine, seen = ray.get_runtime_context().get_node_id(), []
    monkeypatch.setattr(application, "configure_logging", lambda **_: None)
    monkeypatch.setattr(application, "start", lambda *_, **__: seen.append(ray.get_runtime_context().get_node_id()))
    application.serve_on_ray({}, address=None, replicas=application.Replicas(1, 1), stay=False, name="mine")
    assert seen == [mine]


def test_certificates_of_the_environment_are_the_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server whose certificate is a variable would answer in plain text, or whoever has none get in, without a word."""
    from nowcast_server.serve import application

    started: list[dict[str, str]] = []
    monkeypatch.setattr(application.serve, "start", lambda *, http_options, **_: started.append(http_options))
    monkeypatch.setattr(application.serve, "run", lambda *_, **__: None)
    monkeypatch.setenv("NOWCAST_TLS_CERT", "/both.pem")
    assert application.start({}, replicas=application.Replicas()) == "https://127.0.0.1:8440"
    assert (started[0]["ssl_certfile"], started[0]["ssl_keyfile"]) == ("/both.pem", "/both.pem")
    monkeypatch.setenv("NOWCAST_TLS_CA", "/ca.pem")
    with pytest.raises(ValueError, match="nowcast-server run"):
        application.start({}, replicas=application.Replicas())
