"""The live page of all replicas: whichever is asked collects from the others."""

from nowcast_server.serve.peers import Peers
from nowcast_server.web.page.source import Overview
from nowcast_server.web.page.views import CourseView
from protos.wiring import Wiring


class Replicas:
    """The page's figures of all replicas.

    Args:
        peers: the replicas.
    """

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    async def overview(self, tenant: str) -> Overview:
        """All replicas, and the tenant's jobs on each.

        Raises:
            Unavailable: a replica does not answer.
        """
        found = [Overview.model_validate(each) for each in await self._peers.ask("page_overview", tenant)]
        servers = sorted((server for each in found for server in each.servers), key=lambda server: server.name)
        newest = {}  # a job that has just moved may be on two
        for view in sorted((view for each in found for view in each.jobs), key=lambda view: view.status.seen_at):
            newest[view.job] = view
        return Overview(servers=servers, jobs=list(newest.values()))

    async def course(self, tenant: str, job: str, *, start: int = 0, thinned: int = 0) -> CourseView | None:
        """The job where it was last called on. Raises as `overview` does."""
        answers = await self._peers.ask("page_course", tenant, job, start, thinned)
        found = [CourseView.model_validate(each) for each in answers if each is not None]
        return max(found, key=lambda course: course.view.status.seen_at, default=None)

    async def wiring(self, tenant: str, job: str) -> Wiring | None:
        """The job's neural graph. Raises as `overview` does."""
        answers = await self._peers.ask("page_wiring", tenant, job)
        return next((Wiring.from_dict(each) for each in answers if each is not None), None)
