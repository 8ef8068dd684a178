"""Where running jobs are on the map of training: now and then their contexts are embedded, when nobody waits for the device."""

import math
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from typing import Final

import torch
from torch import Tensor

from nowcast_server.forecasters import Forecaster
from nowcast_server.forecasters.learned import EDGES_PER_S, Nino
from nowcast_server.jobs.budget import Loan
from nowcast_server.jobs.course import Place
from nowcast_server.jobs.registry import Job
from nowcast_server.logs import log
from nowcast_server.nino.cache import LruCache
from nowcast_server.nino.embed import Embedder
from nowcast_server.nowcasting import Nowcasting
from protos.errors import NowcastError

LONGEST_S: Final = 1.0  # that embedding one context may have the CPU and the turn; larger networks are not on the map
KEPT_BYTES: Final = 64 * 2**20  # of networks whose embedders are kept; one larger alone


class TrainingMap:
    """Has the device embed contexts by the first graph network of `forecasters`, which may still load. Used on the event loop."""

    def __init__(self, nowcasting: Nowcasting, *, forecasters: Callable[[], Mapping[str, Forecaster]]) -> None:
        self._nowcasting, self._forecasters = nowcasting, forecasters
        self._embedders = LruCache[Embedder](KEPT_BYTES, weigh=lambda embedder: embedder.nbytes)  # by the wiring's hash
        self._busy = False

    @property
    def network(self) -> Nino | None:
        """The graph network that embeds; None if this server has none."""
        return next((each for each in self._forecasters().values() if isinstance(each, Nino)), None)

    def nowcast(self, job: Job) -> None:
        """A nowcast of the job was made: embed its context if that is due, and nobody waits for the device."""
        network, spec, steps = self.network, job.spec, job.history.steps
        if network is None or self._busy or not self._nowcasting.device.idle or not len(steps) == spec.context == network.context:
            return
        if spec.wiring.edges > LONGEST_S * EDGES_PER_S * torch.get_num_threads() or not job.places.due(job.nowcasts):
            return
        size_bytes = 4 * spec.context * spec.wiring.size + network.working_bytes(spec.wiring, context=spec.context)
        loan = Loan(self._nowcasting.memory, tenant=job.tenant, size_bytes=size_bytes)
        if not loan.begin():  # it is not waited for: the job's history would be held meanwhile
            return
        context, loss = job.history.read(steps), job.progress.loss if job.progress else None
        embedder = partial(Embedder, network.checkpoint, spec.wiring)

        def work() -> Tensor:
            return self._embedders.get(spec.wiring.hash, embedder).embed([state.float() for state in context.states])

        keep = partial(self._keep, job, context.step, math.nan if loss is None else loss)
        try:
            self._nowcasting.submit(job, context, work, loan=loan, keep=keep)
            self._busy = True
        except NowcastError as error:
            log.debug("a context could not be embedded: %s", error)
        finally:
            loan.end()

    def _keep(self, job: Job, step: int, loss: float, done: "Future[Tensor]") -> None:
        self._busy = False
        if done.cancelled() or (error := done.exception()) is not None:
            log.debug("a context could not be embedded: %s", None if done.cancelled() else error)
        elif (vector := done.result()).isfinite().all():  # not of weights whose sums leave float32
            job.places.add(Place(step, loss, vector.numpy()))
