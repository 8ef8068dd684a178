"""Forecasts in: rank 0's side of a job, from a context of snapshots to the displacement that is added to the weights."""

import math
import threading
from collections.abc import Callable
from functools import cache
from typing import Any, Final

import torch
from torch import Tensor

from protos.errors import DeadlineExceeded, HistoryMissing
from protos.messages import JobSpec, Progress
from trainer_worker.coherence import LayerCoherence, alignment, brake, coherence
from trainer_worker.endpoints.endpoint import Deadline, Endpoint
from trainer_worker.endpoints.sender import SLOWEST_RATE, Request, Sender
from trainer_worker.push import Push, displacement, shape
from trainer_worker.snapshots import SPARE_ROWS, Snapshot, SnapshotBuffers
from trainer_worker.weights.flat import FlatParameters

# makes the progress of a run, given the coherence of the push that has just ended, and of all so far by layer
Tell = Callable[[float | None, dict[str, float]], Progress]
REMEMBERED: Final = 6  # intervals over which coherence is averaged
GRACE_S: Final = 0.5  # beyond the deadline, for the answer that is just coming in


class Forecasts:
    """Takes snapshots, has them sent, asks for forecasts and makes them ready to be added. No method waits but `collect`, if it is
    told to. `timeout_s` is for a nowcast, and for each call of the background thread; an endpoint in this process knows none.
    """

    def __init__(self, flat: FlatParameters, endpoint: Endpoint, spec: JobSpec, *, push: Push, timeout_s: float) -> None:
        self._flat, self._spec, self._push = flat, spec, push
        self._timeout_s = math.inf if endpoint.local else timeout_s
        self.waits = endpoint.local
        self.sender = Sender(endpoint, spec, timeout_s=self._timeout_s)
        # a jump is waited for; of a push a late forecast is given up at the end of its interval
        self._patience_s = self._timeout_s + (0 if spec.mode == "jump" else 8 * flat.size / SLOWEST_RATE)
        self.buffers = SnapshotBuffers(flat, dtype=getattr(torch, spec.dtype), rows=spec.context + SPARE_ROWS)
        self._pushed: Tensor | None = None  # (n,) what is being added in this interval
        self._ended: Tensor | None = None  # (n,) what was added in the interval before
        self._compared: tuple[Snapshot, ...] = ()  # snapshots at the start and end of that interval
        self._seen: Callable[[], float | None] = lambda: None  # how coherent that was
        self.layers = LayerCoherence([piece.name for piece in flat.pieces])
        self._coherence = 0.0  # of the pushes so far, a moving average

    def take(self, step: int, progress: Tell, *, asked: bool = False) -> None:
        """Take a snapshot and have it sent, with the progress of the run, which is made on the background thread.

        With `asked`, `ask` follows at once, and one call does for both. Raises NoRow while earlier ones are still under way.
        """
        snapshot = self.buffers.take(step, in_use=(*self.sender.in_use(), *self._compared))
        self._compared = (*self.sender.context[-1:], snapshot)
        self._seen = seen = self._compare()
        self.sender.offer(snapshot, lambda: progress(seen(), self.layers.means()), asked=asked)

    def _compare(self) -> Callable[[], float | None]:
        """How coherent the push was that has ended between the last two snapshots; worked out once, when first asked for."""
        ended, snapshots = self._ended, self._compared

        @cache
        def seen() -> float | None:
            if ended is None or len(snapshots) < 2:
                return None
            aligned = alignment(ended, snapshots[-2].wait(), snapshots[-1].wait(), self._flat.pieces)
            self.layers.add(aligned)
            return coherence(aligned)

        return seen

    def ask(self, *, gain: float, horizon: int | None = None) -> Request:
        """Have a forecast made from the present context, for a push of this gain, 0 for all of the displacement; returns at once.
        The horizon is in intervals, None for the push's, or the one that suits the forecaster.
        """
        context, seen, before = self.sender.context, self._seen, self._coherence
        horizon = horizon or self._push.horizon
        deadline = Deadline(self._patience_s)

        def finish(forecast: Tensor) -> Tensor:
            states = [snapshot.wait() for snapshot in context]
            pieces = deadline.watching(self._flat.pieces)
            if gain:
                left = gain * brake(_follow(before, seen()))
                return shape(forecast, states, pieces, gain=left, hold_norms=self._push.hold_norms)
            return displacement(forecast, states, pieces, hold_norms=self._push.hold_norms)

        request = Request(context, (horizon,) if horizon else (), deadline, finish)
        if len(context) < self._spec.context:
            missing = f"{self._spec.context - len(context)} of the context's snapshots could not be taken"
            request.finish(error=HistoryMissing(missing, field="context"))
        self.sender.ask(request)
        return request

    def collect(self, request: Request, *, wait: bool) -> Tensor:
        """The displacement (n,) float32 that came of a request. If not told to wait until its deadline, it is here or given up.
        Raises NowcastError: there is none; the error says why.
        """
        patience_s = max(0.0, request.deadline.left_s + GRACE_S) if wait else 0.0
        if not request.done.wait(min(patience_s, threading.TIMEOUT_MAX)):
            self.sender.give_up(request)
            raise DeadlineExceeded("the forecast was not there in time")
        if request.error is not None:
            raise request.error
        assert request.result is not None
        self._coherence = _follow(self._coherence, self._seen())
        return request.result

    @property
    def braked(self) -> float:
        """Share of its gain that the forecast collected last was left with."""
        return brake(self._coherence)

    def pushing(self, displacement: Tensor | None) -> None:
        """Remember what is added in the interval that begins: at its end it shows whether training went along."""
        self._ended, self._pushed = self._pushed, displacement

    def state_dict(self) -> dict[str, Any]:
        """The context, copied: `context` (context, n), `steps` (context,), -1 where there is none; the last pushes, 0 if none."""
        context = self.sender.context
        values = torch.zeros(self._spec.context, self._flat.size, dtype=getattr(torch, self._spec.dtype))
        steps = torch.full((self._spec.context,), -1)
        for index, snapshot in enumerate(context):
            values[index], steps[index] = snapshot.wait(), snapshot.step
        pushed, ended = (torch.zeros(self._flat.size) if push is None else push.clone() for push in (self._pushed, self._ended))
        return {"context": values, "steps": steps, "pushed": pushed, "ended": ended, "coherence": self._coherence}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint; the endpoint is made to forget what it holds, and gets these snapshots instead."""
        self.sender.restart()
        for step, values in zip(state["steps"].tolist(), state["context"], strict=True):
            if step >= 0:
                # in memory of its own: rows may still be read for an answer that nobody wants any more
                self.sender.offer(Snapshot(step, values.to("cpu", getattr(torch, self._spec.dtype), copy=True)))
        self._pushed, self._ended = (state[key].to("cpu", copy=True) if state[key].any() else None for key in ("pushed", "ended"))
        self._coherence = float(state["coherence"])
        self._compared = self.sender.context[-2:]
        self._seen = self._compare()


def _follow(mean: float, seen: float | None) -> float:
    """A moving average of coherence, with what was seen last."""
    return mean if seen is None else mean + (seen - mean) / REMEMBERED
