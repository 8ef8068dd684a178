"""What is checked and made before a run starts, so that mistakes show at once and by name."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import httpx2
import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn
from torch.optim import Optimizer

from protos.errors import BadRequest, BadWiring
from protos.messages import LONGEST_HORIZON, Dtype, JobId, JobSpec
from protos.wiring import Wiring
from trainer_worker.candidates import Mode
from trainer_worker.endpoints.endpoint import Endpoint
from trainer_worker.errors import BadArgument
from trainer_worker.jump import Jump
from trainer_worker.names import job_id
from trainer_worker.schedule import Cautious, Learner, PaperSchedule, Policy
from trainer_worker.trials.contest import Contest
from trainer_worker.trials.gauge import Gauge, Probe
from trainer_worker.trials.guard import SHORTEST, Guard, Trials, recovery_steps, stretch_steps
from trainer_worker.trials.kept import KeptState
from trainer_worker.weights.distributed import Ranks
from trainer_worker.weights.flat import FlatParameters
from trainer_worker.weights.snapshots import TORCH_DTYPES
from trainer_worker.wiring import wire

if TYPE_CHECKING:
    from trainer_worker.endpoints.embedded import EmbeddedEndpoint

EMBEDDED: Final = "embedded"
KINDS: Final = {
    "jump": (Jump, "a Jump, e.g. Jump(growth=1)"),
    "guard": (Guard, "a Guard, e.g. Guard(budget=0.3)"),
    "wiring": (Wiring, "what wire(model) gives"),
}
_claims: Final[dict[int, str]] = {}
"""Which job moves a parameter (by identity), while its `Nowcast` is entered."""


def new_job() -> str:
    """An id nobody has; one that `nowcast submit` started says so."""
    return job_id(os.environ.get("NOWCAST_JOB", "job"))


def check_timing(*, max_steps: int, context: int, interval: int, timeout_s: float, quiet: int = 0) -> None:
    """Refuse counts and durations that make no sense.

    Raises:
        BadArgument: naming it.
    """
    for name, value in (("max_steps", max_steps), ("context", context), ("interval", interval)):
        if type(value) is not int or value < 1:
            raise BadArgument(name, f"must be a positive integer, not {value!r}")
    if type(quiet) is not int or not 0 <= quiet <= interval:
        raise BadArgument("quiet", f"must be a number of steps from 0 to interval = {interval}, not {quiet!r}")
    if not timeout_s > 0:
        raise BadArgument("timeout_s", f"must be a positive number of seconds, not {timeout_s!r}")


def check_kinds(*, model: object, optimizer: object, options: Mapping[str, object]) -> None:
    """Refuse what is of another kind than an argument takes, such as a configuration's value in place of the object it makes.

    Raises:
        BadArgument: naming it.
    """
    if not isinstance(model, nn.Module):
        raise BadArgument("model", f"must be a torch.nn.Module, not {type(model).__name__}")
    if not isinstance(optimizer, Optimizer):
        raise BadArgument("optimizer", f"must be a torch.optim.Optimizer, not {type(optimizer).__name__}")
    for name, (kind, such_as) in KINDS.items():
        value = options[name]
        if value is not None and not isinstance(value, kind):
            raise BadArgument(name, f"must be {such_as}, not {value!r:.80}")
    policy = options["policy"]
    if isinstance(policy, type) or (policy is not None and not hasattr(policy, "horizons")):
        raise BadArgument("policy", f"must be a policy, e.g. FixedHorizon(4), not {policy!r:.80}")
    for name in ("probe", "on_event"):
        value = options[name]
        if value is not None and not callable(value):
            raise BadArgument(name, f"must be a function, not {value!r:.80}")


def check_dtype(dtype: str) -> torch.dtype:
    """The dtype of snapshots by name.

    Raises:
        BadArgument: snapshots cannot have it.
    """
    if dtype not in TORCH_DTYPES:
        raise BadArgument("dtype", f"{dtype!r} is not one of {', '.join(TORCH_DTYPES)}")
    return TORCH_DTYPES[dtype]


def check_sharded(parameters: FlatParameters, wiring: Wiring | None) -> None:
    """Refuse, on every rank, to wire a model of which none has all.

    Raises:
        BadArgument: it is split over ranks, and no wiring is given.
    """
    if parameters.sharded and wiring is None:
        raise BadArgument("wiring", "a model that is split over ranks cannot be wired: call wire(model) before fully_shard")


def make_spec(
    model: nn.Module,
    parameters: FlatParameters,
    *,
    wiring: Wiring | None,
    example_inputs: Any,
    context: int,
    interval: int,
    dtype: Dtype,
    forecaster: str,
    record: bool = False,
) -> JobSpec:
    """What the endpoint is told about the job.

    Raises:
        BadArgument: naming what does not fit.
    """
    try:
        wiring = wiring or wire(model, example_inputs)
    except BadWiring as error:
        raise BadArgument("model", error.detail) from error
    held = [(parameter.name, parameter.shape) for parameter in wiring.parameters]
    for mine, other in zip(parameters.shapes, held, strict=False):
        if mine != other:
            raise BadArgument("wiring", f"has {other[0]!r} {other[1]} where the model has {mine[0]!r} {mine[1]}")
    if len(held) != len(parameters.shapes):
        raise BadArgument("wiring", f"has {len(held)} parameters, the model has {len(parameters.shapes)}")
    try:
        return JobSpec(wiring=wiring, context=context, interval=interval, dtype=dtype, forecaster=forecaster, record=record)
    except ValidationError as error:
        first = error.errors()[0]
        raise BadArgument(str(first["loc"][0]), first["msg"]) from error


def make_endpoint(
    server: "str | Endpoint | None",
    *,
    job: str,
    token: str | None,
    spec: JobSpec,
    checkpoint: str | None,
    device: torch.device,
) -> Endpoint:
    """The endpoint `server` stands for; None is that of NOWCAST_SERVER, which `nowcast submit` sets, else `embedded`.

    Raises:
        BadArgument: an address that is none, a job id that cannot be one, a forecaster that cannot be had.
    """
    try:
        TypeAdapter(JobId).validate_python(job)
    except ValidationError as error:
        raise BadArgument("job", f"{job!r}: 1 to 128 letters, digits, '.', '_', '-', the first a letter or digit") from error
    if server is None:
        server = os.environ.get("NOWCAST_SERVER", EMBEDDED)
    if server == EMBEDDED:
        return _embedded(spec, checkpoint=checkpoint, device=device)
    if not isinstance(server, str):
        if not hasattr(server, "register"):
            raise BadArgument("server", f"{server!r} is no URL like http://127.0.0.1:8440")
        return server
    if checkpoint is not None:
        raise BadArgument("checkpoint", "is for forecasts in this process; a server is started with its own (--checkpoint)")
    try:
        url = httpx2.URL(server)
    except (httpx2.InvalidURL, TypeError) as error:
        raise BadArgument("server", f"{server!r} is no URL: {error}") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise BadArgument("server", f"{server!r} is no URL like http://127.0.0.1:8440")
    from trainer_worker.endpoints.client import HttpEndpoint

    try:
        return HttpEndpoint(server, job=job, token=token or os.environ.get("NOWCAST_TOKEN"))
    except OSError as error:
        raise BadArgument("server", f"the certificates that NOWCAST_TLS_* name cannot be used: {error}") from error


def _embedded(spec: JobSpec, *, checkpoint: str | None, device: torch.device) -> "EmbeddedEndpoint":
    try:
        from trainer_worker.endpoints.embedded import EmbeddedEndpoint, load_embedded

        forecaster = load_embedded(spec.forecaster, checkpoint=checkpoint, device=device)
    except ImportError as error:
        detail = f"forecasts in this process need the extra nowcast[server] ({error}); install it, or give the URL of a server"
        raise BadArgument("server", detail) from error
    try:
        forecaster.check(spec.wiring, context=spec.context)
    except BadRequest as error:
        raise BadArgument(error.field or "forecaster", error.detail) from error
    return EmbeddedEndpoint(forecaster)


def make_policy(policy: Policy | None, *, max_steps: int, period: int, tried: bool) -> Policy:
    """The policy to follow: by default the paper's; one that knows nothing of outcomes is made cautious where there are some.

    Raises:
        BadArgument: it learns from outcomes, and there are none; or it is for another period.
    """
    policy = policy or PaperSchedule(max_steps=max_steps, period=period)
    counted_on = getattr(policy, "period", None)
    if counted_on not in (None, period):
        raise BadArgument(
            "policy", f"is for a nowcast every {counted_on} steps; here there is one every {period}, context * interval"
        )
    if isinstance(policy, Learner):
        if not tried:
            raise BadArgument("policy", f"{type(policy).__name__} learns from jumps that are tried: give probe= or guard=")
        return policy
    return Cautious(policy) if tried else policy


def check_policy(policy: Policy, endpoint: Endpoint) -> None:
    """Refuse a policy that asks for horizons which nothing has, or more than the forecaster can see, as far as that is known here.

    Raises:
        BadArgument: it does.
    """
    limit = getattr(getattr(endpoint, "forecaster", None), "max_horizon", None) or LONGEST_HORIZON
    if not 1 <= policy.furthest <= limit:
        raise BadArgument("policy", f"asks for horizon {policy.furthest}; the forecaster can see from 1 to {limit} intervals ahead")


def check_mode(*, overlap: bool, shadow: bool, interval: int) -> Mode:
    """Which of the ways forecasts come in.

    Raises:
        BadArgument: both are asked for, or there is no time to overlap with.
    """
    if overlap and shadow:
        raise BadArgument("shadow", "never loads a forecast, so there is nothing to overlap; choose one")
    if (overlap or shadow) and interval < 2:
        raise BadArgument("interval", "must be at least 2 steps, for training to go on while a forecast is made")
    return "overlap" if overlap else "shadow" if shadow else "blocking"


def make_trials(
    guard: Guard | None,
    probe: Probe | None,
    *,
    model: nn.Module,
    parameters: FlatParameters,
    optimizer: Optimizer,
    ranks: Ranks,
    policy: Policy,
    interval: int,
    period: int,
    max_steps: int,
    averages: Sequence[nn.Module] = (),
) -> tuple[Gauge, Trials] | tuple[None, None]:
    """What tries jumps, and what measures for it; None without a guard and a probe.

    Raises:
        BadArgument: the guard cannot work.
    """
    if guard is None and probe is None:
        return None, None
    guard = guard or Guard()
    also = (*guard.also, *averages)
    start, aside = (KeptState(model=model, optimizer=optimizer, also=also) for _ in range(2))
    recovery = recovery_steps(guard, interval=interval, period=period, candidates=len(policy.horizons(period)))
    window = max(SHORTEST, stretch_steps(recovery, interval))
    gauge = Gauge(model, list(parameters.trained), probe, ranks=ranks, window=window)
    contest = Contest(start, aside)
    return gauge, Trials(guard, gauge=gauge, contest=contest, recovery=recovery, interval=interval, max_steps=max_steps)


def claim(parameters: FlatParameters, job: str) -> None:
    """Mark the parameters as this job's.

    Raises:
        BadArgument: another job has one of them.
    """
    for parameter in parameters.trained:
        if id(parameter) in _claims:
            detail = f"its parameters are nowcast by {_claims[id(parameter)]!r} already; leave that `with` block first"
            raise BadArgument("model", detail)
    _claims.update((id(parameter), job) for parameter in parameters.trained)


def release(parameters: FlatParameters) -> None:
    """Give the parameters free."""
    for parameter in parameters.trained:
        _claims.pop(id(parameter), None)
