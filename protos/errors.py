"""Errors of the API: one small hierarchy, each with a stable code.

The code, not the text, is the contract. A server renders an error as RFC 9457 problem+json (`Problem` in
`protos.messages`); a client rebuilds the same error with `error_from_problem`, so both sides raise and catch one set of types.
"""

import math
from typing import Any, ClassVar


class NowcastError(Exception):
    """Base of all errors of the protocol.

    Args:
        detail: one sentence: what is wrong, and what to do.
        field: the input at fault, e.g. `blocks[3].targets`; None if no single field is.
        extra: further members of the problem, e.g. the steps that a history lacks.
    """

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "The server failed"

    def __init__(self, detail: str, *, field: str | None = None, **extra: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.field = field
        self.extra = extra


class BadRequest(NowcastError):
    """The request does not have the form that the protocol asks for."""

    code, status, title = "bad_request", 422, "The request is not valid"


class BadWiring(NowcastError):
    """The wiring's blocks do not fit its parameters or neurons."""

    code, status, title = "bad_wiring", 422, "The wiring is not valid"


class BadFrame(NowcastError):
    """The stream is truncated, out of order, or fails a checksum."""

    code, status, title = "bad_frame", 422, "The stream is not valid"


class BadValue(NowcastError):
    """The tensor holds NaN or infinity."""

    code, status, title = "bad_value", 422, "The tensor holds values that are not finite"


class UnknownForecaster(NowcastError):
    """The server does not have this forecaster."""

    code, status, title = "unknown_forecaster", 422, "The forecaster is not known here"


class NotFound(NowcastError):
    """The path does not exist."""

    code, status, title = "not_found", 404, "The path does not exist"


class MethodNotAllowed(NowcastError):
    """The path exists, but does not take this method."""

    code, status, title = "method_not_allowed", 405, "The method is not allowed here"


class Unauthorized(NowcastError):
    """The request has no valid token."""

    code, status, title = "unauthorized", 401, "A token is needed"


class Forbidden(NowcastError):
    """The token is valid, but does not allow the call."""

    code, status, title = "forbidden", 403, "The token does not allow this"


class UnknownJob(NowcastError):
    """The server does not know the job: never registered, expired, or lost in a restart. Register it again."""

    code, status, title = "unknown_job", 404, "The job is not known here"


class JobConflict(NowcastError):
    """The id belongs to a job with other settings: wiring, context, dtype, forecaster, mode or record."""

    code, status, title = "job_conflict", 409, "The job exists with other settings"


class RunConflict(NowcastError):
    """Another run uses this job id. The run that starts last takes it over, by deleting the job first."""

    code, status, title = "run_conflict", 409, "Another run has the job"


class SnapshotConflict(NowcastError):
    """The snapshot contradicts the history: it is older, or has other values for a step that is held."""

    code, status, title = "snapshot_conflict", 409, "The snapshot contradicts the history"


class HistoryMissing(NowcastError):
    """The history lacks snapshots that the nowcast needs; `missing` lists the steps to resend."""

    code, status, title = "history_missing", 409, "The history lacks snapshots"


class TooLarge(NowcastError):
    """The body or the wiring is larger than the server accepts."""

    code, status, title = "too_large", 413, "The body is too large"


class UnsupportedMedia(NowcastError):
    """The server does not know this content type or protocol version."""

    code, status, title = "unsupported_media", 415, "The content type is not supported"


class Busy(NowcastError):
    """Too many calls are in flight. Try again after `retry_after_s`."""

    code, status, title = "busy", 429, "Too many calls in flight"


class BadForecast(NowcastError):
    """The forecast holds NaN or infinity, and is not sent."""

    code, status, title = "bad_forecast", 500, "The forecast is not finite"


class Unavailable(NowcastError):
    """The server is starting, draining or down. Try again after `retry_after_s`."""

    code, status, title = "unavailable", 503, "The server is not available"


class DeadlineExceeded(NowcastError):
    """The caller's deadline passed before the forecast was made."""

    code, status, title = "deadline_exceeded", 504, "The deadline passed"


class OutOfMemoryBudget(NowcastError):
    """The job's history does not fit into the memory that the server may use."""

    code, status, title = "out_of_memory_budget", 507, "The memory budget is spent"


def _all_subclasses(cls: type[NowcastError]) -> list[type[NowcastError]]:
    return [cls, *(deep for sub in cls.__subclasses__() for deep in _all_subclasses(sub))]


ERRORS: dict[str, type[NowcastError]] = {cls.code: cls for cls in _all_subclasses(NowcastError)}
"""Error types by their code."""


def error_from_problem(problem: dict[str, Any]) -> NowcastError:
    """Rebuild the error a problem+json body describes; unknown codes become a plain `NowcastError`, and members that are not of
    their type are left out.
    """
    known = ("type", "title", "status", "detail", "code", "field")
    field = problem.get("field")
    cls = ERRORS.get(str(problem.get("code")), NowcastError)
    error = cls(str(problem.get("detail", "")), field=field if isinstance(field, str) else None)
    error.extra = {key: value for key, value in problem.items() if key not in known and _is_of_its_type(key, value)}
    return error


def _is_of_its_type(member: str, value: Any) -> bool:
    """Whether clients can act on it: a server that is wrong must not break them."""
    if member == "retry_after_s":
        return isinstance(value, int | float) and 0 <= value < math.inf
    if member == "missing":
        return isinstance(value, list) and all(isinstance(step, int) for step in value)
    return True
