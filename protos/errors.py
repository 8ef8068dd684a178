"""Everything a nowcast call can fail with: one small hierarchy, each error with a stable code.

The code, not the text, is the contract. A server renders an error as RFC 9457 problem+json (`Problem` in
`protos.messages`); a client rebuilds the same error with `error_from_problem`, so both sides raise and catch one set of types.
"""

import math
from typing import Any, ClassVar


class NowcastError(Exception):
    """Base of all errors of the protocol.

    Args:
        detail: one sentence saying what is wrong and how to mend it.
        field: the input it is about, e.g. `blocks[3].targets`; None where no single field is to blame.
        extra: further JSON-able members of the problem, e.g. the steps a history lacks.
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
    """A request that is not of the form the protocol gives."""

    code, status, title = "bad_request", 422, "The request is not valid"


class BadWiring(NowcastError):
    """A wiring whose blocks do not fit its parameters or neurons."""

    code, status, title = "bad_wiring", 422, "The wiring is not valid"


class BadFrame(NowcastError):
    """A stream that is truncated, out of order, or fails a checksum."""

    code, status, title = "bad_frame", 422, "The stream is not valid"


class BadValue(NowcastError):
    """A tensor that holds NaN or infinity."""

    code, status, title = "bad_value", 422, "The tensor holds values that are not finite"


class UnknownForecaster(NowcastError):
    """A forecaster this server does not have."""

    code, status, title = "unknown_forecaster", 422, "The forecaster is not known here"


class NotFound(NowcastError):
    """No such path."""

    code, status, title = "not_found", 404, "There is nothing here"


class MethodNotAllowed(NowcastError):
    """A path that exists, called by a method it does not have."""

    code, status, title = "method_not_allowed", 405, "The method is not allowed here"


class Unauthorized(NowcastError):
    """No valid token came with the request."""

    code, status, title = "unauthorized", 401, "A token is needed"


class Forbidden(NowcastError):
    """A valid token that does not allow the call."""

    code, status, title = "forbidden", 403, "The token does not allow this"


class UnknownJob(NowcastError):
    """A job this server does not know: never registered, expired, or lost in a restart. Register and go on."""

    code, status, title = "unknown_job", 404, "The job is not known here"


class JobConflict(NowcastError):
    """A job id that is taken by a job with another wiring, context, dtype or forecaster."""

    code, status, title = "job_conflict", 409, "The job exists with other settings"


class RunConflict(NowcastError):
    """A job that another run has: one of two with the same id. The one that began last takes it, by deleting it first."""

    code, status, title = "run_conflict", 409, "Another run has the job"


class SnapshotConflict(NowcastError):
    """A snapshot that contradicts the history: older than what it holds, or other values for a step it has."""

    code, status, title = "snapshot_conflict", 409, "The snapshot contradicts the history"


class HistoryMissing(NowcastError):
    """The history lacks snapshots the nowcast needs; `extra["missing"]` lists the steps to resend."""

    code, status, title = "history_missing", 409, "The history lacks snapshots"


class TooLarge(NowcastError):
    """A body or wiring larger than the server takes."""

    code, status, title = "too_large", 413, "The body is too large"


class UnsupportedMedia(NowcastError):
    """A content type or protocol version the server does not speak."""

    code, status, title = "unsupported_media", 415, "The content type is not supported"


class Busy(NowcastError):
    """A limit of calls in flight is reached; `extra["retry_after_s"]` says when to come again."""

    code, status, title = "busy", 429, "Too many calls in flight"


class BadForecast(NowcastError):
    """A forecast that holds NaN or infinity; it is withheld, never sent."""

    code, status, title = "bad_forecast", 500, "The forecast is not finite"


class Unavailable(NowcastError):
    """The server is starting, draining or down; `extra["retry_after_s"]` says when to come again."""

    code, status, title = "unavailable", 503, "The server is not available"


class DeadlineExceeded(NowcastError):
    """The caller's deadline passed before the work was done."""

    code, status, title = "deadline_exceeded", 504, "The deadline passed"


class OutOfMemoryBudget(NowcastError):
    """The job's history does not fit the memory the server may use."""

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
