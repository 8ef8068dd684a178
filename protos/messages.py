"""The JSON messages of HTTP API v1, as both sides build and read them."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator, StringConstraints, WithJsonSchema

from protos.wiring import Wiring

API = "/v1"
SESSION_HEADER = "x-session-id"
"""Carries the job id on every call of a job, so that a consistent-hash router keeps the job on one replica."""
DEADLINE_HEADER = "x-deadline-s"
"""Seconds from receipt after which the caller no longer wants the answer; the server may drop the work then."""

RUN_HEADER = "x-run-id"
"""Which run of a job calls: made anew at each start. The job belongs to the run that registered it; others are a `run_conflict`."""

RunId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
JobId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
Dtype = Literal["float32", "float16", "bfloat16"]
Step = Annotated[int, Field(ge=0, lt=2**48)]
LONGEST_HORIZON = 10_000
Horizon = Annotated[int, Field(ge=1, le=LONGEST_HORIZON)]
Skill = dict[str, dict[str, float]]
"""By horizon, then forecaster: 1 - error / error of `last`, its mean over the forecasts whose future has come."""
WiringField = Annotated[
    Wiring,
    PlainValidator(lambda v: v if isinstance(v, Wiring) else Wiring.from_dict(v)),
    PlainSerializer(Wiring.to_dict),
    WithJsonSchema({"type": "object", "required": ["parameters", "neurons", "blocks"]}),
]


class Message(BaseModel):
    """Base of all messages: frozen, and a misspelt field is an error instead of a silence."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)


class JobSpec(Message):
    """`PUT /v1/jobs/{job}`: what a job is. Putting the same again is a no-op, another one under the same id a `job_conflict`.

    Args:
        wiring: the network's neural graph.
        context: snapshots a forecast is made from.
        interval: training steps between two of them.
        dtype: in which snapshots are sent and kept.
        forecaster: one of the server's (`GET /v1/info`).
        record: whether a server that records (`--record`) may keep the snapshots, to fit forecasters to.
    """

    wiring: WiringField
    context: Annotated[int, Field(ge=2, le=64)] = 5
    interval: Annotated[int, Field(ge=1, lt=2**32)] = 200
    dtype: Dtype = "float32"
    forecaster: Annotated[str, StringConstraints(max_length=64)] = "nino"
    record: bool = False


class SnapshotReceipt(Message):
    """Answer to `PUT /v1/jobs/{job}/snapshots/{step}`: the steps the history now holds, oldest first."""

    step: Step
    steps: list[Step]


class NowcastRequest(Message):
    """`POST /v1/jobs/{job}/nowcasts`: forecast from the `context` snapshots that end at `step`."""

    step: Step
    horizons: Annotated[list[Horizon], Field(min_length=1, max_length=16)]
    dtype: Dtype = "float32"


class Outcome(Message):
    """`POST /v1/jobs/{job}/outcomes`: what became of a nowcast.

    Args:
        step: of the nowcast.
        horizon: that was loaded, the best if several were tried; None if none was.
        outcome: `accepted` (the weights stayed), `rejected` (rolled back) or `skipped` (never loaded).
        reason: a short stable word or sentence, e.g. `server_unavailable`.
        loss_before: on the probe, where the run was heading without the jump when that was judged.
        loss_after: on the probe, what it was then.
        cost_steps: that were undone. After a rejected jump the weights are so many steps later again those of before it; with an
            accepted one it is what trying other horizons took.
    """

    step: Step
    horizon: Horizon | None = None
    outcome: Literal["accepted", "rejected", "skipped"]
    reason: Annotated[str, StringConstraints(max_length=500)] = ""
    loss_before: float | None = None
    loss_after: float | None = None
    cost_steps: Step = 0


class JobStatus(Message):
    """`GET /v1/jobs/{job}`. Times are Unix seconds, durations seconds, sizes bytes."""

    job: JobId
    wiring_hash: str
    parameters: int
    neurons: int
    edges: int
    context: int
    interval: int
    dtype: Dtype
    forecaster: str
    created_at: float
    seen_at: float
    steps: list[Step]
    history_bytes: int
    snapshots: int
    nowcasts: int
    outcomes: dict[str, int]
    last_outcomes: list[Outcome]
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
    forecasters: list[str]
    max_snapshot_bytes: int
    max_memory_bytes: int


class Problem(BaseModel):
    """RFC 9457 problem+json. `code` is stable; further members depend on it (`missing`, `retry_after_s`)."""

    model_config = ConfigDict(extra="allow")

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    code: str
    field: str | None = None
