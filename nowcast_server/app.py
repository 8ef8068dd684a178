"""The FastAPI app."""

from collections.abc import Callable, Mapping
from typing import Final

from fastapi import APIRouter, FastAPI

from nowcast_server.forecasters import Forecaster
from nowcast_server.service import Service
from nowcast_server.settings import Settings
from nowcast_server.web import problems
from nowcast_server.web.page import routes as page
from nowcast_server.web.routes import health, jobs, snapshots
from nowcast_server.web.routes.calls import PROBLEMS
from protos.messages import API

PROBES: Final = frozenset({"/livez", "/readyz", "/metrics"})  # no calls worth a trace


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
    service = Service(settings, forecasters=forecasters, on_failure=on_failure)
    app = FastAPI(
        title="Nowcast",
        lifespan=lambda _: service.running(),
        docs_url=None,
        redoc_url=None,
        openapi_url=f"{API}/openapi.json",
        redirect_slashes=False,
        responses=PROBLEMS,
        telemetry={
            "tracing": otel,
            "metrics": otel,
            "logs": False,  # they would repeat ours, and show what callers sent
            "auto_configure": otel,
            "exclude": lambda scope: scope["path"] in PROBES,
        },
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
