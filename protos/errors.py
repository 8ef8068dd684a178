"""Errors of the API, each with a stable code, which is the contract. A server renders one as problem+json
(`protos.messages.Problem`), a client rebuilds it with `NowcastError.from_problem`: both raise and catch one set of types.
"""

import math
import re
from collections.abc import Callable
from typing import Any, ClassVar, Final

ERRORS: Final[dict[str, "type[NowcastError]"]] = {}  # error types by their code


class NowcastError(Exception):
    """The server failed; its log says why. The base of all other errors.

    The first words of a docstring are the title. `detail` is one sentence: what is wrong, and what to do. `field` is the input at
    fault, e.g. `blocks[3].targets`; `extra` are further members of the problem.
    """

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "The server failed"

    def __init_subclass__(cls, *, code: str | None = None, status: int = 500) -> None:
        if code is not None:
            cls.code, cls.status, cls.title = code, status, re.split("[.:;]", cls.__doc__ or code)[0]
            ERRORS[code] = cls

    def __init__(self, detail: str, *, field: str | None = None, **extra: Any) -> None:
        super().__init__(detail)
        self.detail, self.field, self.extra = detail, field, extra

    @staticmethod
    def from_problem(problem: dict[str, Any]) -> "NowcastError":
        """Rebuild the error a problem+json body describes, without members of a wrong type; an unknown code is a `NowcastError`."""
        known = ("type", "title", "status", "detail", "code", "field")
        field = problem.get("field")
        cls = ERRORS.get(str(problem.get("code")), NowcastError)
        error = cls(str(problem.get("detail", "")), field=field if isinstance(field, str) else None)
        error.extra = {key: value for key, value in problem.items() if key not in known and _FITS.get(key, lambda _: True)(value)}
        return error


ERRORS[NowcastError.code] = NowcastError


class BadRequest(NowcastError, code="bad_request", status=422):
    """The request does not have the form that the protocol asks for."""


class BadWiring(NowcastError, code="bad_wiring", status=422):
    """The wiring's blocks do not fit its parameters or neurons."""


class BadFrame(NowcastError, code="bad_frame", status=422):
    """The stream is truncated, out of order, or fails a checksum."""


class BadValue(NowcastError, code="bad_value", status=422):
    """The tensor holds NaN or infinity."""


class UnknownForecaster(NowcastError, code="unknown_forecaster", status=422):
    """The server does not have this forecaster."""


class NotFound(NowcastError, code="not_found", status=404):
    """The path does not exist."""


class MethodNotAllowed(NowcastError, code="method_not_allowed", status=405):
    """The path exists, but does not take this method."""


class Unauthorized(NowcastError, code="unauthorized", status=401):
    """The request has no valid token."""


class Forbidden(NowcastError, code="forbidden", status=403):
    """The token is valid, but does not allow the call."""


class UnknownJob(NowcastError, code="unknown_job", status=404):
    """The server does not know the job: never registered, expired, or lost in a restart. Register it again."""


class JobConflict(NowcastError, code="job_conflict", status=409):
    """The id belongs to a job with other settings: wiring, context, dtype, forecaster, mode or record."""


class RunConflict(NowcastError, code="run_conflict", status=409):
    """Another run uses this job id. The run that starts last takes it over, by deleting the job first."""


class SnapshotConflict(NowcastError, code="snapshot_conflict", status=409):
    """The snapshot contradicts the history: it is older, or has other values for a step that is held."""


class HistoryMissing(NowcastError, code="history_missing", status=409):
    """The history lacks snapshots that the nowcast needs; `missing` lists the steps to resend."""


class TooLarge(NowcastError, code="too_large", status=413):
    """The body or the wiring is larger than the server accepts."""


class UnsupportedMedia(NowcastError, code="unsupported_media", status=415):
    """The server does not know this content type or protocol version."""


class Busy(NowcastError, code="busy", status=429):
    """Too many calls are in flight. Try again after `retry_after_s`."""


class BadForecast(NowcastError, code="bad_forecast", status=500):
    """The forecast holds NaN or infinity, and is not sent."""


class Unavailable(NowcastError, code="unavailable", status=503):
    """The server is starting, draining or down. Try again after `retry_after_s`."""


class DeadlineExceeded(NowcastError, code="deadline_exceeded", status=504):
    """The caller's deadline passed before the forecast was made."""


class OutOfMemoryBudget(NowcastError, code="out_of_memory_budget", status=507):
    """The job's history does not fit into the memory that the server may use."""


_FITS: Final[dict[str, Callable[[Any], bool]]] = {  # a server that is wrong must not break clients that act on these
    "retry_after_s": lambda value: isinstance(value, int | float) and 0 <= value < math.inf,
    "missing": lambda value: isinstance(value, list) and all(isinstance(step, int) for step in value),
}
