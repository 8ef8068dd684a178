"""Health, info and metrics."""

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from nowcast_server.tokens import OPERATOR
from nowcast_server.web.routes.calls import Tenant, TheService
from protos.errors import Forbidden, Unavailable
from protos.messages import API, Info

router = APIRouter(tags=["health"])


@router.api_route("/livez", methods=["HEAD", "OPTIONS"], include_in_schema=False)
@router.get("/livez")
async def live(service: TheService) -> dict[str, str]:
    """The process answers, and restarting it would not help: its forecasters are loaded, and none is stuck."""
    if service.failure is not None:
        raise Unavailable("the server has failed; its log says why")
    if service.device.overdue:
        raise Unavailable("a forecast goes on beyond its limit, and does not let itself be stopped")
    return {"status": "live"}


@router.api_route("/readyz", methods=["HEAD", "OPTIONS"], include_in_schema=False)
@router.get("/readyz")
async def ready(service: TheService) -> dict[str, str]:
    """Work may come: the forecasters are loaded, and the server is not draining."""
    service.admit()
    return {"status": "ready"}


@router.head("/metrics", include_in_schema=False)
@router.get("/metrics", response_class=Response)
async def metrics(tenant: Tenant, service: TheService) -> Response:
    """Prometheus metrics. With tokens, for the tenant `operator` alone, as they count over all tenants."""
    if service.tokens.tenants and tenant != OPERATOR:
        raise Forbidden(f"the metrics are for the token of {OPERATOR!r}", field="authorization")
    return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)


@router.get(f"{API}/info")
async def info(_: Tenant, service: TheService) -> Info:
    """Versions, limits and forecasters."""
    return service.info()
