"""One replica: the whole app in a Ray actor, and its answers to Serve and to other replicas."""

import asyncio
from functools import partial
from typing import Any

from fastapi import FastAPI
from prometheus_client.core import Metric
from ray import serve
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nowcast_server.app import create_app
from nowcast_server.running import prepare_process
from nowcast_server.serve.peers import Peers, router
from nowcast_server.serve.scaling import AT_HAND
from nowcast_server.service import Service
from nowcast_server.settings import Settings
from nowcast_server.web.page.source import Local, Source
from protos.errors import RunConflict
from protos.messages import JobStatus

POLL_S = 0.05


class Picklable:
    """Forecasts leave the app as views of their memory, which cannot be pickled on the way to Serve's proxy."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def copied(message: Message) -> None:
            if isinstance(message.get("body"), memoryview):
                message = {**message, "body": bytes(message["body"])}
            await send(message)

        await self._app(scope, receive, copied)


class Replica:
    """What Serve starts, with `Settings` by name. Its methods run on the app's event loop."""

    def __init__(self, args: dict[str, Any]) -> None:
        self._settings = Settings(**args)
        prepare_process(self._settings)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve after the constructor."""
        app = create_app(self._settings, first=router)
        app.add_middleware(Picklable)
        context = serve.get_replica_context()
        peers = app.state.peers = Peers(context)
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
        """For `scaling.forecasts_at_hand`."""
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
        (answer,) = await self._page.ask(method, *args)
        return answer

    async def metrics(self) -> list[Metric]:
        """All metrics, labelled with this replica."""
        found = list(self._service.metrics.registry.collect())
        for metric in found:
            metric.samples = [sample._replace(labels={**sample.labels, "replica": self._tag}) for sample in metric.samples]
        return found
