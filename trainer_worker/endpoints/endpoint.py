"""What a job asks of a nowcast server, or of forecasters in this process; and by when."""

import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import Tensor

from protos.errors import DeadlineExceeded
from protos.messages import JobSpec, Progress, Skill

Item = TypeVar("Item")


class Deadline:
    """A moment on the monotonic clock, so many seconds from now; infinity for never."""

    def __init__(self, seconds: float) -> None:
        self._at = time.monotonic() + seconds
        self._cut: Callable[[], None] | None = None
        self._expired = threading.Event()
        self._changing = threading.Lock()

    @property
    def left_s(self) -> float:
        """Seconds that remain; negative once it has passed."""
        return self._at - time.monotonic()

    def check(self, what: str) -> float:
        """Seconds that remain. Raises `DeadlineExceeded`: none do."""
        left_s = self.left_s
        if left_s <= 0:
            raise DeadlineExceeded(f"{what} took longer than it may")
        return left_s

    def pause(self, seconds: float) -> None:
        """Wait so long, or until somebody lets it pass."""
        self._expired.wait(seconds)

    def watching(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, for work that shall end when it passes. Raises `DeadlineExceeded`: it has passed before the next one."""
        for item in items:
            self.check("the work")
            yield item

    def expire(self) -> None:
        """Let it pass now: nobody waits any more. May be called from any thread."""
        with self._changing:
            self._at = min(self._at, time.monotonic())
            self._expired.set()
            if self._cut is not None:
                self._cut()

    @contextmanager
    def cutting(self, cut: Callable[[], None]) -> Iterator[None]:
        """Have `cut` called by another thread if the deadline passes within."""
        self._cut = cut
        timer = threading.Timer(max(0.0, min(self.left_s, threading.TIMEOUT_MAX)), self.expire)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            with self._changing:
                self._cut = None


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """A forecast to be made."""

    context: Sequence[int]  # steps, oldest first
    horizons: tuple[int, ...] = ()  # in intervals; empty for the one that suits the forecaster
    newest: Tensor | None = None  # the last snapshot (n,) if it has not been sent yet: one call does for both
    progress: Progress | None = None  # of the run, to be told along with it


class Endpoint(Protocol):
    """One job's view of a server, or of forecasters in process; called by one thread, the sender's, at a time. Every call may raise
    any `NowcastError`; it must return or raise before its deadline, give or take one operation of the network.
    """

    @property
    def local(self) -> bool:
        """Forecasts are made in this process: nothing is cut short, and results do not depend on time."""

    def register(self, spec: JobSpec, *, replace: bool, deadline: Deadline) -> Collection[int]:
        """Make the job known; the steps its history holds already. With `replace` it is forgotten first."""

    def send(self, step: int, snapshot: Tensor, *, progress: Progress | None = None, deadline: Deadline) -> None:
        """Add a snapshot (n,), which stays as it is while its step is in a context, and tell the run's progress."""

    def forecast(self, asked: Asked, out: Tensor, *, deadline: Deadline) -> None:
        """Forecast into `out` (max(1, len(horizons)), n) float32."""

    def finish(self, progress: Progress, *, deadline: Deadline) -> Skill:
        """The run has ended, and its history may go; how its forecasts have come true."""

    def close(self) -> None:
        """Let go of connections and memory; may be called while another call is under way, which then fails soon."""
