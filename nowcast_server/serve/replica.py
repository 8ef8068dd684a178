"""One replica: the whole app in a Ray actor, its answers to Serve, and what the replicas of one server have to agree on.

Serve's router sends every call with the same `x-session-id` to the same replica; when the number of replicas changes, some jobs
move. The worker then meets `unknown_job`, registers and resends its context. The replica that takes a job over first asks whether
another run has it, as a single server would know, and has the others drop it before it answers: a history that was left behind
could otherwise be taken for the job's own when it moves back.
"""

import asyncio
from functools import partial
from types import SimpleNamespace
from typing import Annotated, Any, Final

import ray
from fastapi import APIRouter, FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import Metric
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from nowcast_server.app import create_app
from nowcast_server.logs import log
from nowcast_server.running import prepare_process
from nowcast_server.serve.scaling import AT_HAND
from nowcast_server.service import Service
from nowcast_server.settings import Settings
from nowcast_server.web.page.source import Local, Source
from nowcast_server.web.routes import health, jobs
from nowcast_server.web.routes.calls import Run, Tenant, TheJobId, TheService, json_body, of_app
from protos.errors import RunConflict, Unavailable, UnknownJob
from protos.messages import API, RUN_HEADER, JobList, JobSpec, JobStatus

POLL_S: Final = 0.05
ANSWER_S: Final = 10.0  # a replica that takes longer to answer another one is in trouble

router = APIRouter()  # calls that concern all replicas; they take the place of the app's own, which see one


class Peers:
    """All replicas of this deployment, this one included."""

    def __init__(self, deployment: str, app: str) -> None:
        self._name, self._app = deployment, app
        self._handle: DeploymentHandle[Any] | None = None

    async def ask(self, method: str, *args: Any) -> list[Any]:
        """Call a method of every replica that is alive; their answers, or Unavailable if one does not answer."""
        if self._handle is None:
            self._handle = serve.get_deployment_handle(self._name, self._app)
        try:
            answers = await self._handle.broadcast(method, *args).results_async(timeout_s=ANSWER_S, return_exceptions=True)
        except (TimeoutError, DeploymentUnavailableError) as error:
            raise Unavailable(f"a replica does not answer: {error}", retry_after_s=1) from error
        failed = [each for each in answers if isinstance(each, BaseException) and not isinstance(each, RayActorError)]
        if failed:
            log.error("a replica failed to answer %s: %s", method, failed[0])
            raise Unavailable("a replica failed to answer", retry_after_s=1)
        return [each for each in answers if not isinstance(each, BaseException)]


ThePeers = Annotated[Peers, of_app("peers")]


@router.put(f"{API}/jobs/{{job}}", openapi_extra=json_body(JobSpec), responses={201: {"model": JobStatus}})
async def register(  # noqa: PLR0917 -- FastAPI passes them by name
    job: TheJobId, tenant: Tenant, service: TheService, request: Request, response: Response, peers: ThePeers, run: Run = None
) -> JobStatus:
    """Register a job here, and nowhere else; unless another run has it, wherever.

    A run that starts deletes the job everywhere and registers it then, so one that is dead is in nobody's way.
    """
    for conflict in await peers.ask("run_conflict", tenant, job, run):
        if conflict is not None:
            raise RunConflict(conflict, field=RUN_HEADER)
    status = await jobs.register(job, tenant, service, request, response, run)
    if any(await peers.ask("forget", tenant, job, request.app.state.tag)):
        log.info("job moved here", extra={"tenant": tenant, "job": job})
    return status


@router.delete(f"{API}/jobs/{{job}}", status_code=204)
async def delete(job: TheJobId, tenant: Tenant, peers: ThePeers) -> None:
    """Forget a job, wherever it is."""
    if not any(await peers.ask("forget", tenant, job, None)):
        raise UnknownJob(f"job {job!r} is not registered here", field="job")


@router.get(f"{API}/jobs/{{job}}")
async def status(job: TheJobId, tenant: Tenant, peers: ThePeers) -> JobStatus:
    """What the server knows of a job, wherever it is."""
    if found := [each for each in await _statuses(peers, tenant) if each.job == job]:
        return max(found, key=lambda each: each.seen_at)
    raise UnknownJob(f"job {job!r} is not registered here", field="job")


@router.get(f"{API}/jobs")
async def list_jobs(tenant: Tenant, peers: ThePeers) -> JobList:
    """The caller's jobs on all replicas."""
    return JobList(jobs=await _statuses(peers, tenant))


@router.get("/metrics", response_class=Response)
async def metrics(tenant: Tenant, service: TheService, peers: ThePeers) -> Response:
    """Prometheus metrics of all replicas, with the label `replica`."""
    await health.metrics(tenant, service)  # its rules on who may read them
    merged: dict[str, Metric] = {}
    for metric in (metric for answer in await peers.ask("metrics") for metric in answer):
        merged.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type)).samples += metric.samples
    read: Any = SimpleNamespace(collect=merged.values)  # as a registry of Prometheus's client says what it has
    return Response(generate_latest(read), media_type=CONTENT_TYPE_LATEST)


async def _statuses(peers: Peers, tenant: str) -> list[JobStatus]:
    return [status for answer in await peers.ask("statuses", tenant) for status in answer]


class Replica:
    """What Serve starts, with `Settings` by name. Its methods run on the app's event loop."""

    def __init__(self, args: dict[str, Any]) -> None:
        self._settings = Settings(**args)
        if self._settings.device == "auto" and not ray.get_gpu_ids():  # Ray hides no GPU from those that asked for none
            self._settings = self._settings.model_copy(update={"device": "cpu"})
        prepare_process(self._settings)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve after the constructor."""
        app = create_app(self._settings, first=router)
        context = serve.get_replica_context()
        peers = app.state.peers = Peers(context.deployment, context.app_name)
        app.state.page_source = Source(partial(peers.ask, "page"))
        self._tag = app.state.tag = context.replica_tag
        self._service: Service = app.state.service
        self._page = Local(self._service, name=self._tag)
        return app

    async def check_health(self) -> None:
        """Serve's first call waits until the forecasters are loaded, so that no job meets a replica that is not ready."""
        while not self._service.ready and self._service.failure is None and not self._service.draining:  # noqa: ASYNC110 -- at the start alone
            await asyncio.sleep(POLL_S)
        if self._service.failure is not None:
            raise self._service.failure

    async def record_autoscaling_stats(self) -> dict[str, float]:
        device = self._service.device
        return {AT_HAND: float(device.waiting + (not device.idle))}

    async def run_conflict(self, tenant: str, job: str, run: str | None) -> str | None:
        """Why the run may not have the job, if it is here for another."""
        try:
            if (held := self._service.jobs.find(tenant, job)) is not None:
                held.check_run(run)
        except RunConflict as conflict:
            return conflict.detail
        return None

    async def forget(self, tenant: str, job: str, keeper: str | None) -> bool:
        """Drop a job, unless this is the replica that keeps it; True if it was here."""
        held = self._service.jobs.find(tenant, job)
        if held is None or keeper == self._tag:
            return False
        self._service.remove(held)
        return True

    async def statuses(self, tenant: str) -> list[JobStatus]:
        """The tenant's jobs that are here."""
        return [job.status() for job in self._service.jobs.of(tenant)]

    async def page(self, method: str, *args: Any) -> Any:
        """What `web.page.source.Local` says of this replica."""
        return getattr(self._page, method)(*args)

    async def metrics(self) -> list[Metric]:
        """All metrics, labelled with this replica."""
        found = list(self._service.metrics.registry.collect())
        for metric in found:
            metric.samples = [sample._replace(labels={**sample.labels, "replica": self._tag}) for sample in metric.samples]
        return found
