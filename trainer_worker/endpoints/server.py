"""How a job reaches a nowcast server, or forecasters in this process."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

import torch

from protos.errors import NowcastError
from protos.messages import JOB_ID, Dtype, JobSpec
from trainer_worker.endpoints.endpoint import Endpoint
from trainer_worker.errors import BadArgument
from trainer_worker.names import job_id

if TYPE_CHECKING:
    from trainer_worker.endpoints.embedded import EmbeddedEndpoint

EMBEDDED: Final = "embedded"


@dataclass(frozen=True)
class Server:
    """How to reach a nowcast server, and what a job sends there.

    Args:
        url: `http://` or `https://`; "embedded" to forecast in this process; None for NOWCAST_SERVER, else "embedded".
        token: bearer token; None for NOWCAST_TOKEN.
        job: id of the job, unique among running jobs; None for a random one that begins with NOWCAST_JOB.
        timeout_s: longest time for a call or a forecast, in seconds. Uploads and pushes get the time their bytes take on top.
        dtype: precision in which snapshots are kept and sent: `float32`, `float16` or `bfloat16`. Forecasts are float32.
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


def name_of(forecaster: str) -> str:
    """What a forecaster is called at a server, and in the names of runs: a file of weights by its own name."""
    return Path(forecaster).stem[:64] if is_file(forecaster) else forecaster


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
