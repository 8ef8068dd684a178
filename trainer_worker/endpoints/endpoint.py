"""Where forecasts come from, seen from a worker: how to reach a nowcast server, and what it or this process must offer."""

import os
import re
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, get_args

import torch
from torch import Tensor

from protos.errors import DeadlineExceeded, NowcastError
from protos.messages import JOB_ID, Dtype, JobSpec, Progress, Skill
from trainer_worker.errors import BadArgument
from trainer_worker.names import job_id

if TYPE_CHECKING:
    from trainer_worker.endpoints.embedded import EmbeddedEndpoint

EMBEDDED: Final = "embedded"
Item = TypeVar("Item")


class Deadline:
    """A moment on the monotonic clock, so many seconds from now; infinity for never."""

    def __init__(self, seconds: float) -> None:
        self._at = time.monotonic() + seconds
        self._cut: Callable[[], None] | None = None
        self._changing = threading.Lock()

    @property
    def left_s(self) -> float:
        """Seconds that remain; negative once it has passed."""
        return self._at - time.monotonic()  # negative once it has passed

    def check(self, what: str) -> float:
        """Seconds that remain. Raises `DeadlineExceeded`: none do."""
        left_s = self.left_s
        if left_s <= 0:
            raise DeadlineExceeded(f"{what} took longer than it may")
        return left_s

    def watching(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, for work that shall end when it passes. Raises `DeadlineExceeded`: it has passed before the next one."""
        for item in items:
            self.check("the work")
            yield item

    def expire(self) -> None:
        """Let it pass now: nobody waits any more. May be called from any thread."""
        with self._changing:
            self._at = min(self._at, time.monotonic())
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


@dataclass(frozen=True)
class Server:
    """How to reach a nowcast server, and what a job sends there.

    Args:
        url: `http://` or `https://`; "embedded" to forecast in this process; None for NOWCAST_SERVER, else "embedded".
        token: bearer token; None for NOWCAST_TOKEN.
        job: id of the job, unique among running jobs; None for a random one that begins with NOWCAST_JOB.
        timeout_s: longest time for a call, and for a forecast. Uploads and pushes have the time their bytes take besides.
        dtype: precision of snapshots, kept and sent: `float32`, `float16` or `bfloat16`. Forecasts come back in float32.
        record: allow a server that records (`--record`) to keep the snapshots, to fit forecasters to them.

    Raises:
        BadArgument: a value cannot work.
    """

    url: str | None = None
    token: str | None = None
    job: str | None = None
    timeout_s: float = 30.0
    dtype: Dtype = "float32"
    record: bool = False

    def __post_init__(self) -> None:
        if not self.timeout_s > 0:
            raise BadArgument("timeout_s", f"must be a positive number of seconds, not {self.timeout_s!r}")
        if self.dtype not in get_args(Dtype):
            raise BadArgument("dtype", f"{self.dtype!r} is not one of {', '.join(get_args(Dtype))}")
        if self.job is not None and not (isinstance(self.job, str) and re.fullmatch(JOB_ID, self.job)):
            raise BadArgument("job", f"{self.job!r}: 1 to 128 letters, digits, '.', '_', '-', the first a letter or digit")

    @classmethod
    def of(cls, given: Any) -> "Server":
        """What a user passes as `server`: a URL, a `Server`, or None."""
        if given is None or isinstance(given, str):
            return cls(given)
        if not isinstance(given, cls):
            raise BadArgument("server", f"must be a URL, a Server or an Endpoint, not {given!r:.80}")
        return given

    def new_job(self) -> str:
        """The job's id, or a new random one."""
        return self.job or job_id(os.environ.get("NOWCAST_JOB", "job"))


def is_file(forecaster: str) -> bool:
    """Whether a forecaster is given as a file of weights rather than by name."""
    return "/" in forecaster or forecaster.endswith((".pt", ".safetensors"))


def connect(server: Server, spec: JobSpec, *, job: str, forecaster: str, device: torch.device) -> Endpoint:
    """The endpoint for a job; in this process forecasts are made on `device`, the model's, and `forecaster` may be a file. Raises
    `BadArgument`: the address, the token or the forecaster cannot be used.
    """
    url = server.url or os.environ.get("NOWCAST_SERVER", "").strip() or EMBEDDED
    if url == EMBEDDED:
        return embed(spec, forecaster=forecaster, device=device)
    if is_file(forecaster):
        detail = f"{forecaster} is a file, which a server cannot read: start it with --checkpoint, and pass the forecaster's name"
        raise BadArgument("forecaster", detail)
    from trainer_worker.endpoints.client import HttpEndpoint

    return HttpEndpoint(url, job=job, token=server.token or os.environ.get("NOWCAST_TOKEN"))


def embed(spec: JobSpec, *, forecaster: str, device: torch.device) -> "EmbeddedEndpoint":
    """Forecasts in this process, as for `connect`. Raises `BadArgument`: no such forecaster, or it does not fit this network."""
    try:
        from trainer_worker.endpoints.embedded import EmbeddedEndpoint, load_embedded

        loaded = load_embedded(forecaster, device=device)
        loaded.check(spec.wiring, context=spec.context)
    except ImportError as error:
        detail = f"forecasts in this process need the extra nowcast-train[embedded] ({error}); install it, or give a server's URL"
        raise BadArgument("server", detail) from error
    except NowcastError as error:
        raise BadArgument(error.field or "forecaster", error.detail) from error
    return EmbeddedEndpoint(loaded, spec)
