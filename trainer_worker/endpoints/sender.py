"""The background thread that sends snapshots and requests to an endpoint.

It works towards a state rather than through a queue: the job is registered, the endpoint holds every snapshot of the context, and
the request that waits is answered. Whatever fails, a server restarted, a snapshot lost, the next round sets right in the same way,
so first registration, recovery and resuming share one path.
"""

import atexit
import logging
import math
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

import torch
from torch import Tensor

from protos.errors import DeadlineExceeded, HistoryMissing, NowcastError, RunConflict, SnapshotConflict, Unavailable, UnknownJob
from protos.messages import JobSpec, Progress, Skill
from trainer_worker.endpoints.endpoint import Asked, Deadline, Endpoint
from trainer_worker.errors import BadArgument, reason_for
from trainer_worker.snapshots import Snapshot

log = logging.getLogger(__name__)

OPEN_S: Final = 5.0  # the start of a run may wait for the server so long
STOP_S: Final = 1.0  # its end waits so long for a call under way, and once more after cutting it off
FIRST_PAUSE_S: Final = 0.25  # between two attempts to reach a server that is down
LONGEST_PAUSE_S: Final = 5.0
LONGEST_RETRY_AFTER_S: Final = 60.0
SLOWEST_RATE: Final = 256 * 1024  # bytes a second; a slower link is of no use. A server's `upload_min_rate` is the same by default
REPAIRS: Final = 3  # times one context is registered or sent anew before its nowcast is given up


@dataclass(eq=False)
class Request:
    """A forecast that was asked for."""

    context: tuple[Snapshot, ...]  # it is made from, oldest first
    horizons: tuple[int, ...]  # in intervals; empty for the one that suits the forecaster
    deadline: Deadline  # of the whole request
    make: Callable[[Tensor], Tensor]  # what is made of the forecast (n,), in its memory; called on the sender's thread
    result: Tensor | None = None
    error: BaseException | None = None
    done: threading.Event = field(default_factory=threading.Event)

    def finish(self, result: Tensor | None = None, *, error: BaseException | None = None) -> None:
        """Answer it, with an error if there is no forecast."""
        self.result, self.error = result, error
        self.done.set()


class Sender:
    """Owns the endpoint and the thread that talks to it. No method waits for either, except `open` and `stop`. `timeout_s` is for
    each call but forecasts, which bring their own deadline; an upload has the time its bytes take as well.
    """

    def __init__(self, endpoint: Endpoint, spec: JobSpec, *, timeout_s: float) -> None:
        self._endpoint, self._spec, self._timeout_s = endpoint, spec, timeout_s
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopping = self._registered = self._replace = False
        self._restarts = 0
        self._context: dict[int, Snapshot] = {}  # the newest, as many as a forecast is made from
        self._held: set[int] = set()  # steps the endpoint has
        self._spoilt: dict[int, BaseException] = {}  # why snapshots of the context cannot be sent
        self._untold: Callable[[], Progress] | None = None  # what the newest has to say
        self._request: Request | None = None
        self._together = True  # a request goes along with the last snapshot of its context
        self._repairs = 0
        self._down: BaseException | None = None  # why the endpoint is left alone until `_retry_at`
        self._retry_at = 0.0  # never, where the job is another run's now
        self._failures = 0
        self._jitter = random.Random()  # noqa: S311  # one of its own: the global one belongs to the training
        self._under_way: Deadline | None = None  # of the call
        self._reading: tuple[Snapshot, ...] = ()  # by the call under way
        self._news: deque[tuple[str, BaseException | None]] = deque(maxlen=1000)
        self._last: Callable[[], Progress] | None = None  # told when the run ends
        self.sent = 0
        self.skill: Skill = {}

    # called by the training thread

    def open(self, *, resumed: bool = False) -> None:
        """Start the thread, and wait `OPEN_S` at most until the job is registered; what the endpoint held of it is forgotten. A run
        that is under way, `resumed`, waits for nothing; one that has loaded a checkpoint goes on whatever the endpoint says. Raises
        `BadArgument`: the server refuses the job of a run that begins.
        """
        self._replace = True
        self._thread = threading.Thread(target=self._work, name="nowcast-sender", daemon=True)
        self._thread.start()
        if self._endpoint.local:  # a thread within torch when the interpreter ends would abort the process
            atexit.register(self._thread.join)
        if resumed:
            return
        with self._changed:
            self._changed.wait_for(lambda: self._registered or self._down, OPEN_S)
            error = self._down
        if self._restarts or error is None or _passes(error):
            return
        if not isinstance(error, NowcastError):
            raise error
        detail = f"the server rejected the job ({error.code}): {error.detail}"
        if error.field == "authorization":
            raise BadArgument("token", f"{detail}; give Server(url, token=...) or NOWCAST_TOKEN") from error
        raise BadArgument(error.field or "server", detail) from error

    def offer(self, snapshot: Snapshot, progress: Callable[[], Progress] | None = None, *, asked: bool = False) -> None:
        """Add a snapshot to the context; its memory must stay as it is while `in_use` names it. `progress` of the run is made on
        the sender's thread and told with it, unless the next one comes first. If it is `asked` for a forecast at once, the request
        goes along with it.
        """
        with self._changed:
            self._context[snapshot.step], self._untold = snapshot, progress
            while len(self._context) > self._spec.context:
                step = min(self._context)
                del self._context[step]
                self._held.discard(step)
                self._spoilt.pop(step, None)
            if not asked:
                self._changed.notify()

    def ask(self, request: Request) -> None:
        """Have a request answered; at once if it is known that it will fail. It takes the place of one that still waits."""
        with self._changed:
            self._request, self._repairs = request, 0
            if self._stopping:
                request.finish(error=Unavailable("the run has ended"))
            self._settle()
            self._changed.notify()

    def give_up(self, request: Request) -> None:
        """Nobody waits for the request any more: a call under way for it is cut off."""
        with self._changed:
            if self._request is request:
                self._request = None
        request.deadline.expire()

    def reset(self) -> None:
        with self._changed:
            self._context, self._held, self._spoilt = {}, set(), {}

    def restart(self) -> None:
        """Begin anew, with the context of a checkpoint that is being loaded: the endpoint forgets what it holds."""
        with self._changed:
            self.reset()
            self._registered, self._replace = False, True
            self._restarts += 1
            self._changed.notify()

    @property
    def context(self) -> tuple[Snapshot, ...]:
        """The context so far, oldest first."""
        with self._changed:
            return tuple(self._context.values())

    def in_use(self) -> tuple[Snapshot, ...]:
        """Snapshots whose memory must not be written to."""
        with self._changed:
            return (*self._context.values(), *self._reading)

    @property
    def in_flight(self) -> int:
        """Snapshots of the context the endpoint does not have yet."""
        with self._changed:
            return sum(step not in self._held for step in self._context)

    def news(self) -> Iterator[tuple[str, BaseException | None]]:
        """What became of the server since the last call: `lost` with the reason, or `back`."""
        while self._news:
            yield self._news.popleft()

    def stop(self, progress: Callable[[], Progress]) -> None:
        """End the thread, and tell the `progress` of the whole run. A forecast under way is cut off; other calls have `STOP_S`."""
        with self._changed:
            self._stopping, self._last = True, progress
            self._changed.notify()
            if self._request is not None:
                self._request.deadline.expire()
        if self._thread is None or self._thread is threading.current_thread():  # which may collect a run that was dropped
            self._endpoint.close()
            return
        if self._endpoint.local:
            self._endpoint.close()
        self._thread.join(STOP_S)
        if self._under_way is not None:
            self._under_way.expire()  # if that was a snapshot, the server can still be told of the end
        self._thread.join(STOP_S)
        self._endpoint.close()
        if not self._thread.is_alive():
            atexit.unregister(self._thread.join)
        elif self._endpoint.local:
            log.warning("%s is still computing a forecast; the process waits for it when it ends", self._spec.forecaster)
        else:
            log.warning("a call to the server did not end; its thread ends with the process")

    def abandon(self) -> None:
        """End the thread without waiting for it, and without a word to the endpoint: another sender of the job follows."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._under_way is not None:
            self._under_way.expire()
        self._endpoint.close()

    # called by the sender's thread

    def _work(self) -> None:
        while (work := self._next()) is not None:
            work()
        if self._registered and self._last is not None:
            with self._call("finish", Deadline(STOP_S)) as deadline:
                self.skill = self._endpoint.finish(self._last(), deadline=deadline)

    def _next(self) -> Callable[[], None] | None:
        """Wait for something to do; None to end."""
        with self._changed:
            self._reading = ()
            while not self._stopping:
                pause_s = self._retry_at - time.monotonic() if self._down else 0.0
                if pause_s <= 0 and (work := self._pick()):
                    return work
                self._changed.wait(pause_s if 0 < pause_s < math.inf else None)
            return None

    def _pick(self) -> Callable[[], None] | None:
        if not self._registered:
            return self._register
        request = self._request if self._request is not None and not self._request.done.is_set() else None
        unsent = [each for step, each in self._context.items() if step not in self._held and step not in self._spoilt]
        along = self._together and request is not None and unsent == [request.context[-1]]
        if unsent and not along:
            self._reading = (unsent[0],)
            return partial(self._send, unsent[0])
        if request is None:
            return None
        self._reading = request.context
        return partial(self._forecast, request, along=along)

    def _register(self) -> None:
        with self._changed:
            replace, restarts = self._replace, self._restarts
        with self._call("register", Deadline(self._timeout_s)) as deadline:
            steps = self._endpoint.register(self._spec, replace=replace, deadline=deadline)
            with self._changed:
                if restarts != self._restarts:
                    return  # begun anew meanwhile: what the endpoint holds is still to be forgotten
                self._registered, self._replace, self._held = True, False, set(steps)
                if self._down is not None:
                    self._news.append(("back", None))
                self._down, self._failures = None, 0
                self._changed.notify_all()

    def _send(self, snapshot: Snapshot) -> None:
        def refused(error: Exception) -> None:
            if _passes(error):
                self._pause(error)
            elif snapshot.step in self._context:
                self._spoilt[snapshot.step] = error

        with self._call("send", Deadline(self._timeout_s + snapshot.values.nbytes / SLOWEST_RATE), refused=refused) as deadline:
            self._endpoint.send(snapshot.step, snapshot.wait(), progress=self._tell(snapshot), deadline=deadline)
            self._sent(snapshot)

    def _forecast(self, request: Request, *, along: bool) -> None:
        def refused(error: Exception) -> None:
            request.finish(error=error)
            self._together = not isinstance(error, DeadlineExceeded)  # a slow link needs all of the time for the snapshot

        *_, last = request.context
        with self._call("forecast", request.deadline, refused=refused) as deadline:
            out = torch.empty(max(1, len(request.horizons)), self._spec.wiring.size, dtype=torch.float32, device="cpu")
            asked = Asked([each.step for each in request.context], request.horizons)
            if along:
                asked = replace(asked, newest=last.wait(), progress=self._tell(last))
            self._endpoint.forecast(asked, out, deadline=deadline)
            if along:
                self._sent(last)
            self._together = True
            request.finish(request.make(out[0]))

    def _tell(self, snapshot: Snapshot) -> Progress | None:
        """What is told with a snapshot; once, as it would be taken for news."""
        with self._changed:
            if self._untold is None or snapshot.step != max(self._context, default=None):
                return None
            untold, self._untold = self._untold, None
        return untold()

    def _sent(self, snapshot: Snapshot) -> None:
        with self._changed:
            self.sent += 1
            if snapshot.step in self._context:
                self._held.add(snapshot.step)

    @contextmanager
    def _call(self, name: str, deadline: Deadline, *, refused: Callable[[Exception], None] = lambda _: None) -> Iterator[Deadline]:
        """While a call is under way: it can be cut off, and its failure is seen to; by `refused` if nothing mends it."""
        with self._changed:
            self._under_way = deadline
        try:
            yield deadline
        except Exception as error:  # whatever it is, training goes on
            level = logging.DEBUG if isinstance(error, NowcastError) else logging.ERROR
            log.log(level, "%s failed: %s", name, error, exc_info=error if level == logging.ERROR else None)
            with self._changed:
                if self._stopping:  # perhaps cut off, which says nothing about the server
                    return
                self._mend(name, error, refused)
                self._settle()

    def _mend(self, call: str, error: Exception, refused: Callable[[Exception], None]) -> None:
        if call == "register" or isinstance(error, Unavailable | RunConflict):
            self._pause(error)
        elif isinstance(error, UnknownJob | HistoryMissing | SnapshotConflict):
            self._repairs += 1
            if isinstance(error, HistoryMissing):
                self._held -= set(error.extra.get("missing", self._held))
            else:
                self._registered, self._replace = False, isinstance(error, SnapshotConflict) or self._replace
        else:
            refused(error)
        if self._repairs > REPAIRS and self._request is not None:
            self._request.finish(error=error)

    def _pause(self, error: BaseException) -> None:
        """Leave the endpoint alone for a while; for good if the job is another run's. Another process may be there afterwards."""
        for_good = isinstance(error, RunConflict)
        doublings = min(self._failures, 32)  # of an outage of hours 2**failures is no float any more
        pause_s = min(FIRST_PAUSE_S * 2**doublings, LONGEST_PAUSE_S) * self._jitter.uniform(0.75, 1.0)
        if isinstance(error, NowcastError):
            pause_s = max(pause_s, min(error.extra.get("retry_after_s", 0.0), LONGEST_RETRY_AFTER_S))
        if for_good:
            log.error("%s; this run goes on without nowcasts", error)
        if self._down is None or for_good:
            self._news.append(("lost", error))
        self._down, self._registered = error, False
        self._failures += 1
        self._retry_at = math.inf if for_good else time.monotonic() + pause_s
        self._changed.notify_all()

    def _settle(self) -> None:
        request = self._request
        if request is None or request.done.is_set():
            return
        spoilt = next((self._spoilt[each.step] for each in request.context if each.step in self._spoilt), None)
        if reason := spoilt or self._down:
            request.finish(error=reason)


def _passes(error: BaseException) -> bool:
    """Whether a failure may pass by itself: the same call can succeed later."""
    return reason_for(error) in ("server_unavailable", "busy", "late", "server_error")
