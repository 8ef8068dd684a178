"""The live page at `/`: what the jobs are doing now, in a browser, without any request beyond this server."""

from fastapi import FastAPI
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from nowcast_server.service import Service
from nowcast_server.web.page import routes
from nowcast_server.web.page.render import STATIC, Renderer
from nowcast_server.web.page.session import SECURITY
from nowcast_server.web.page.source import Local, Shared


class _Files(StaticFiles):
    """Files whose paths hold their edition, so that browsers may keep them for good."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        answer = await super().get_response(path.partition("/")[2], scope)
        answer.headers.update({**SECURITY, "cache-control": "public, max-age=31536000, immutable"})
        return answer


def install(app: FastAPI, service: Service) -> None:
    """Add the page to an app. Where there are replicas, `app.state.page_source` is theirs to set."""
    app.state.page_source = Shared(Local(service))
    app.state.page_renderer = Renderer()
    app.include_router(routes.router)
    app.mount("/static", _Files(directory=STATIC), name="static")
