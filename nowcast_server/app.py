"""The FastAPI app."""

from collections.abc import AsyncIterator, Callable, Mapping, MutableMapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import APIRouter, FastAPI

from nowcast_server.device import CPU, Chosen, check_device, choose_device
from nowcast_server.forecasters import Forecaster
from nowcast_server.forecasters.registry import load_forecasters
from nowcast_server.service import Service
from nowcast_server.settings import Settings
from nowcast_server.web import problems
from nowcast_server.web.page import routes as page
from nowcast_server.web.routes import health, jobs, snapshots
from nowcast_server.web.routes.calls import PROBLEMS
from protos.messages import API


def create_app(
    settings: Settings | None = None,
    *,
    forecasters: Mapping[str, Forecaster] | None = None,
    on_failure: Callable[[], None] = lambda: None,
    first: APIRouter | None = None,
) -> FastAPI:
    """A nowcast server as an ASGI app; several in one process do not know of each other. Its `Service` is `app.state.service`.

    Without `settings` they come from `NOWCAST_*` variables; `forecasters` by name are used in place of those that they ask for.
    `on_failure` is called if the app will never be ready, or is of no use any more; calls of `first` take the place of its own.
    """
    settings = settings or Settings()
    otel = settings.otel
    chosen = choose_device(settings.device) if forecasters is None else CPU
    loader = partial(_forecasters, settings, chosen) if forecasters is None else lambda: forecasters
    service = Service(settings, loader=loader, chosen=chosen, on_failure=on_failure)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    app = FastAPI(
        title="Nowcast",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=f"{API}/openapi.json",
        redirect_slashes=False,
        responses=PROBLEMS,
        # its logs would repeat ours, and show what callers sent; probes and scrapes are no calls worth a trace
        telemetry={"tracing": otel, "metrics": otel, "logs": False, "auto_configure": otel, "exclude": _probes},
    )
    app.state.service = service
    problems.install(app, service)
    if first is not None:
        app.include_router(first)
    app.include_router(health.router)
    app.include_router(jobs.router, prefix=API)
    app.include_router(snapshots.router, prefix=API)
    page.install(app, service)
    return app


def _forecasters(settings: Settings, chosen: Chosen) -> Mapping[str, Forecaster]:
    check_device(chosen.device)
    return load_forecasters(settings.checkpoints, device=chosen.device)


def _probes(scope: MutableMapping[str, Any]) -> bool:
    return scope["path"] in {"/livez", "/readyz", "/metrics"}
