"""Rank 0's side of a nowcast: takes snapshots, has them sent, fetches forecasts."""

import math
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch
from torch import Tensor

from protos.errors import BadForecast, DeadlineExceeded
from protos.messages import JobSpec, Outcome, Skill
from trainer_worker.endpoints.deadline import Deadline
from trainer_worker.endpoints.endpoint import Endpoint
from trainer_worker.endpoints.sender import Request, Sender
from trainer_worker.events import Event
from trainer_worker.weights.flat import FlatParameters
from trainer_worker.weights.snapshots import TORCH_DTYPES, SnapshotBuffers

SPARE_ROWS: Final = 1
GRACE_S: Final = 0.5
"""Beyond the deadline, for the answer that is just coming in."""


class Context:
    """The context's snapshots, here and at the endpoint.

    Args:
        parameters: of the model.
        endpoint: where forecasts come from.
        spec: of the job.
        timeout_s: for a nowcast, and for each call of the background thread; without meaning for an endpoint in this process.
    """

    def __init__(self, parameters: FlatParameters, endpoint: Endpoint, spec: JobSpec, *, timeout_s: float) -> None:
        self._spec = spec
        self._timeout_s = math.inf if endpoint.local else timeout_s
        self._sender = Sender(endpoint, spec, timeout_s=self._timeout_s)
        self._buffers = SnapshotBuffers(parameters, dtype=TORCH_DTYPES[spec.dtype], rows=spec.context + SPARE_ROWS)
        self._forecasts: Tensor | None = None  # (at least len(horizons), n) float32
        self._resumed = False
        self.copied_s = 0.0

    def open(self) -> None:
        """Reach for the endpoint and start to send.

        Raises:
            BadArgument: the server refuses the job, of a run that no state was loaded for.
        """
        self._sender.open(resumed=self._resumed)

    def close(self) -> None:
        """Stop sending; returns within seconds."""
        self._sender.stop()

    def snapshot(self, step: int, *, means: Mapping[Tensor, Tensor]) -> None:
        """Take one, of averages where there are `means`."""
        start = time.perf_counter()
        self._sender.offer(self._buffers.take(step, busy=self._busy(), means=means))
        self.copied_s += time.perf_counter() - start

    def ask(self, step: int, horizons: tuple[int, ...]) -> Request:
        """Have forecasts made from the context that ends at `step`; returns at once."""
        request = Request(step, horizons, self._forecast_memory(len(horizons)), Deadline(self._timeout_s))
        self._sender.ask(request)
        return request

    def collect(self, request: Request, *, wait: bool = True) -> Tensor:
        """Forecasts (len(horizons), n) float32, finite; waits for them until the deadline, or not at all.

        Raises:
            NowcastError: there are none; the error says why. The request is over.
        """
        patience_s = max(0.0, request.deadline.left_s + GRACE_S) if wait else 0.0
        if not request.done.wait(min(patience_s, threading.TIMEOUT_MAX)):
            self._sender.give_up(request)
            self._forecasts = None  # the thread may still be writing to it
            raise DeadlineExceeded("no forecast came in time")
        if request.error is not None:
            raise request.error
        if not all(bool(row.isfinite().all()) for row in request.out):
            raise BadForecast("the forecast holds NaN or infinity")
        return request.out

    def ends(self) -> tuple[Tensor, Tensor]:
        """The oldest and the newest snapshot."""
        snapshots = self._sender.context
        return snapshots[0].wait(), snapshots[-1].wait()

    def reset(self) -> None:
        """Begin the next context."""
        self._sender.reset()

    def report(self, event: Event) -> None:
        """Have the server told what became of a nowcast."""
        outcome = {
            "step": event.step,
            "horizon": event.horizon,
            "outcome": event.outcome,
            "reason": event.reason,
            "loss_before": _finite(event.expected_loss),
            "loss_after": _finite(event.loss),
            "cost_steps": event.cost_steps,
        }
        self._sender.report(Outcome.model_validate(outcome))

    def news(self) -> Iterator[tuple[str, BaseException | None]]:
        """The server's comings and goings since the last call."""
        return self._sender.news()

    @property
    def sent(self) -> int:
        """Snapshots the endpoint has taken."""
        return self._sender.sent

    @property
    def skill(self) -> Skill:
        """Of the run's forecasts, as the endpoint told it at the end."""
        return self._sender.skill

    @property
    def in_flight(self) -> int:
        """Snapshots that are on their way."""
        return self._sender.in_flight

    def state_dict(self) -> dict[str, Any]:
        """The snapshots, copied."""
        return {str(snapshot.step): snapshot.wait().clone() for snapshot in self._sender.context}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint; the endpoint is made to forget what it holds, and gets these snapshots instead."""
        self._resumed = True
        self._sender.reset()
        for step, values in state.items():
            self._sender.offer(self._buffers.put(int(step), values, busy=self._busy()))
        self._sender.restart()

    def _busy(self) -> set[int]:
        return {self._buffers.row_of(snapshot) for snapshot in self._sender.in_use()}

    def _forecast_memory(self, rows: int) -> Tensor:
        if self._forecasts is None or len(self._forecasts) < rows:
            self._forecasts = torch.empty(rows, self._spec.wiring.size, dtype=torch.float32, device="cpu")
        return self._forecasts[:rows]


def _finite(loss: float | None) -> float | None:
    return loss if loss is not None and math.isfinite(loss) else None
