"""Where running jobs are on the map of training: now and then their contexts are embedded, when nobody waits for the device."""

import asyncio
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from typing import Final

import torch

from nowcast_server.device import Device
from nowcast_server.forecasters.learned import EDGES_PER_S, Nino
from nowcast_server.forecasting import Forecaster
from nowcast_server.jobs.budget import Budget
from nowcast_server.jobs.history import Context
from nowcast_server.jobs.places import Place
from nowcast_server.jobs.registry import Job, Jobs
from nowcast_server.logs import log
from nowcast_server.nino.embed import Embedder
from nowcast_server.nowcasting import Loan
from protos.errors import NowcastError
from protos.wiring import Wiring

LONGEST_S: Final = 1.0
"""That embedding one context may have the CPU, where it is done, and the turn; larger networks are not on the map."""
NETWORKS: Final = 16
"""Whose embedders are kept."""


class TrainingMap:
    """Embeds contexts, one at a time. Used on the event loop, but for the embedding itself, which is the device's.

    Args:
        device: gives it a turn.
        jobs: told when one of them is in use.
        memory: it takes on the host.
        forecasters: of this server, once they are loaded; one that is a graph network embeds.
    """

    def __init__(self, device: Device, *, jobs: Jobs, memory: Budget, forecasters: Callable[[], Mapping[str, Forecaster]]) -> None:
        self._device, self._jobs, self._memory, self._forecasters = device, jobs, memory, forecasters
        self._embedders: OrderedDict[str, Embedder] = OrderedDict()
        self._busy = False

    @property
    def network(self) -> Nino | None:
        """The graph network that embeds; None if this server has none."""
        return next((each for each in self._forecasters().values() if isinstance(each, Nino)), None)

    def nowcast(self, job: Job) -> None:
        """A nowcast of the job was made: embed its context if that is due, and nobody waits for the device."""
        network, spec, steps = self.network, job.spec, job.history.steps
        if network is None or self._busy or not self._device.idle or not len(steps) == spec.context == network.context:
            return
        if spec.wiring.edges > LONGEST_S * EDGES_PER_S * torch.get_num_threads() or not job.places.due(job.nowcasts):
            return
        states_bytes = 4 * spec.context * spec.wiring.size
        size_bytes = states_bytes + network.working_bytes(spec.wiring, context=spec.context)
        loan = Loan(self._memory, tenant=job.tenant, size_bytes=size_bytes)
        if not loan.begin():  # it is not waited for: the job's history would be held meanwhile
            return
        context, loss = job.history.read(steps), job.progress.loss if job.progress else None
        work = partial(self._embed, network, spec.wiring, context)
        try:
            future = self._device.submit(work, tenant=job.tenant, job=job.id)
        except NowcastError:  # it stops, or is busy after all
            loan.end()
            job.history.release(context)
            return
        self._busy = True
        self._jobs.enter(job)
        loop = asyncio.get_running_loop()

        def ended(done: "Future[bytes]") -> None:
            loan.end()
            loop.call_soon_threadsafe(self._keep, job, context, math.nan if loss is None else loss, done)

        future.add_done_callback(ended)

    def _embed(self, network: Nino, wiring: Wiring, context: Context) -> bytes:
        embedder = self._embedders.get(wiring.hash)
        if embedder is None:
            embedder = self._embedders[wiring.hash] = Embedder(network.checkpoint, wiring)
        self._embedders.move_to_end(wiring.hash)
        while len(self._embedders) > NETWORKS:
            self._embedders.popitem(last=False)
        return bytes(embedder.embed([state.float() for state in context.states]).numpy().tobytes())

    def _keep(self, job: Job, context: Context, loss: float, done: "Future[bytes]") -> None:
        self._busy = False
        job.history.release(context)
        self._jobs.leave(job)
        if done.cancelled() or (error := done.exception()) is not None:
            log.debug("a context could not be embedded: %s", None if done.cancelled() else error)
        else:
            job.places.add(Place(context.step, loss, done.result()))
