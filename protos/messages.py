"""The JSON messages of HTTP API v1, as both sides build and read them."""

from itertools import pairwise
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BaseModel, Field, PlainSerializer, PlainValidator, StringConstraints, WithJsonSchema

from protos.wiring import Wiring

API = "/v1"
JOB_HEADER = "x-session-id"  # the job's id on all of its calls: a consistent-hash router keeps the job on one replica
DEADLINE_HEADER = "x-deadline-s"  # seconds from receipt after which the caller no longer wants the answer
RUN_HEADER = "x-run-id"  # which run of a job calls, made anew at each start: the job belongs to the run that registered it

RunId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
JOB_ID: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
JobId = Annotated[str, StringConstraints(pattern=JOB_ID)]
Dtype = Literal["float32", "float16", "bfloat16"]
Mode = Literal["glide", "jump", "shadow"]
Reason = Annotated[str, StringConstraints(pattern=r"^[a-z_]{1,40}$")]
MAX_CONTEXT = 64
MAX_LAYERS = 48
Step = Annotated[int, Field(ge=0, lt=2**48)]
LONGEST_HORIZON = 10_000
Cosine = Annotated[float, Field(ge=-1, le=1)]
Horizon = Annotated[int, Field(ge=1, le=LONGEST_HORIZON)]
Skill = dict[str, dict[str, float]]  # by horizon, then forecaster: mean of 1 - error / error of `last`, over forecasts come due
WiringField = Annotated[
    Wiring,
    PlainValidator(lambda v: v if isinstance(v, Wiring) else Wiring.from_dict(v)),
    PlainSerializer(Wiring.to_dict),
    WithJsonSchema({"type": "object", "required": ["parameters", "neurons", "blocks"]}),
]


class Message(BaseModel):
    """Base of all messages: frozen, and a misspelt field is an error instead of a silence."""

    model_config = {"frozen": True, "extra": "forbid", "arbitrary_types_allowed": True, "allow_inf_nan": False}


class About(Message):
    """What a page may say of a run; nothing depends on it."""

    lr: float | None = None  # learning rate at the start
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    link: Annotated[str, StringConstraints(pattern=r"^https?://[^\s\"'<>\\]+$", max_length=500)] | None = None  # e.g. a dashboard


class JobSpec(Message):
    """`PUT /v1/jobs/{job}`: what a job is. Putting the same again is a no-op, another one under the same id a `job_conflict`."""

    wiring: WiringField
    context: Annotated[int, Field(ge=2, le=MAX_CONTEXT)] = 5  # snapshots a forecast is made from, evenly spaced or nearly so
    dtype: Dtype = "float32"  # in which snapshots are sent and kept
    forecaster: Annotated[str, StringConstraints(max_length=64)] = "nino"  # one of the server's (`GET /v1/info`)
    mode: Mode = "glide"  # each nowcast of a run that jumps moves its weights away: forecasts are not scored, a recording is split
    record: bool = False  # whether a server that records (`--record`) may keep the snapshots, to fit forecasters to
    about: About = About()  # may be another when the job is put again


class SnapshotReceipt(Message):
    """Answer to `PUT /v1/jobs/{job}/snapshots/{step}`: the steps the history now holds, oldest first."""

    step: Step
    steps: list[Step]


class Progress(Message):
    """How a run is doing. It travels with snapshots, and alone when the run ends (`POST /v1/jobs/{job}/finish`)."""

    step: Step  # optimizer steps taken
    max_steps: Step | None = None  # of the whole run; None if that is not known
    loss: float | None = None  # mean training loss since the last boundary, as the loop told it
    gain: Annotated[float, Field(ge=0, le=1)] = 0.0  # share of the movement seen that the push under way adds
    coherence: Cosine | None = None  # cosine between the last push and what training itself did meanwhile
    # the same by layer, as a mean over the pushes so far
    layers: Annotated[dict[Annotated[str, StringConstraints(max_length=80)], Cosine], Field(max_length=MAX_LAYERS)] | None = None
    used: Step = 0  # forecasts that were taken up so far
    skipped: Annotated[dict[Reason, Step], Field(max_length=64)] = Field(default_factory=dict)  # nowcasts so far, by reason


def _ascending(steps: list[int]) -> list[int]:
    if any(later <= earlier for earlier, later in pairwise(steps)):
        raise ValueError("steps must ascend")
    return steps


class NowcastRequest(Message):
    """`POST /v1/jobs/{job}/nowcasts`: forecast from snapshots that the job's history holds."""

    context: Annotated[list[Step], Field(min_length=2, max_length=MAX_CONTEXT), AfterValidator(_ascending)]  # oldest first
    # how far ahead, in mean distances between these steps; empty for the one that suits the forecaster when gliding
    horizons: Annotated[list[Horizon], Field(max_length=16)] = Field(default_factory=list)
    dtype: Dtype = "float32"  # of the forecasts

    @property
    def step(self) -> int:
        """The last of the context."""
        return self.context[-1]

    @property
    def interval(self) -> float:
        """Mean distance between the context's steps."""
        return (self.context[-1] - self.context[0]) / (len(self.context) - 1)


class JobStatus(Message):
    """`GET /v1/jobs/{job}`. Times are Unix seconds, durations seconds, sizes bytes."""

    job: JobId
    wiring_hash: str
    parameters: int
    neurons: int
    edges: int
    context: int
    dtype: Dtype
    forecaster: str
    mode: Mode
    about: About = About()
    created_at: float
    seen_at: float
    steps: list[Step]
    history_bytes: int
    snapshots: int
    nowcasts: int
    progress: Progress | None = Field(None, description="as the worker last told it")
    finished: bool = Field(default=False, description="the run has ended and its history is given back")
    forecast_s: float | None = Field(None, description="median time of a forecast on the device")
    skill: Skill = Field(default_factory=dict, description="mean by horizon, then forecaster; `last` is 0")


class JobList(Message):
    """`GET /v1/jobs`."""

    jobs: list[JobStatus]


class Info(Message):
    """`GET /v1/info`: versions and what this server offers."""

    version: str
    protocol: int
    device: str
    device_note: str | None = Field(None, description="why it is the CPU, if a CUDA device was hoped for")
    forecasters: list[str]
    max_snapshot_bytes: int
    max_memory_bytes: int


class Problem(BaseModel, extra="allow"):
    """RFC 9457 problem+json. `code` is stable; further members depend on it (`missing`, `retry_after_s`)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    code: str
    field: str | None = None
