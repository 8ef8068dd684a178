"""Messages and errors survive the way over the wire, and misspelt fields are refused."""

import pytest
from pydantic import ValidationError

from protos.errors import ERRORS, NowcastError, error_from_problem
from protos.messages import JobSpec, NowcastRequest, Problem, Progress
from protos.wiring import Block, EdgeType, Parameter, Wiring

WIRING = Wiring((Parameter("w", (2, 3)),), 5, (Block(EdgeType.LINEAR, 0, 3, 3, 2, parameter=0, source_stride=1, target_stride=3),))


def test_a_job_survives_json() -> None:
    """A worker would register another job than it has."""
    spec = JobSpec(wiring=WIRING, mode="shadow", forecaster="average")
    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize(
    "given",
    [{"horizons": horizons} for horizons in ([0], [-1], [10_001], list(range(1, 30)), ["a"])]
    + [{"context": context} for context in ([], [5], [5, 5], [6, 5], [-1, 5], list(range(65)))]
    + [{"dtype": "float8"}, {"step": 5}],
    ids=str,
)
def test_impossible_requests_are_refused(given: dict[str, object]) -> None:
    """A request for the past, or from snapshots out of order, would reach the forecaster."""
    assert NowcastRequest.model_validate({"context": [1, 5]}).interval == 4
    with pytest.raises(ValidationError):
        NowcastRequest.model_validate({"context": [1, 5], **given})


@pytest.mark.parametrize(
    "given", [{"loss": float("nan")}, {"gain": 1.5}, {"coherence": -2}, {"skipped": {"A reason!": 1}}, {"skipped": {"x": -1}}]
)
def test_progress_that_cannot_be_is_refused(given: dict[str, object]) -> None:
    """NaN is no JSON, and a reason of any text could be a script: the status page would break for everyone."""
    with pytest.raises(ValidationError):
        Progress.model_validate({"step": 1, **given})


def test_every_error_survives_its_problem() -> None:
    """A worker could not tell a missing history from a full server."""
    for code, cls in ERRORS.items():
        error = cls("why", field="f", missing=[1, 2])
        problem = Problem(title=cls.title, status=cls.status, detail=error.detail, code=code, field=error.field, **error.extra)
        again = error_from_problem(problem.model_dump(exclude_none=True))
        assert (type(again), again.detail, again.field, again.extra) == (cls, "why", "f", {"missing": [1, 2]})


@pytest.mark.parametrize(
    ("member", "value"),
    [("retry_after_s", value) for value in ("5", None, [], -1, float("nan"), float("inf"))]
    + [("missing", value) for value in (3, "30", None, [[10]], {"10": 1}, [10.5])],
    ids=str,
)
def test_members_of_another_type_are_left_out(member: str, value: object) -> None:
    """A worker would compare a number with it, or look it up in a set, in the very place where it looks after failures."""
    assert error_from_problem({"code": "busy", member: value}).extra == {}


def test_any_problem_is_an_error() -> None:
    """A newer server's error would escape the worker's handling; or a wrong one's members be taken for arguments, a TypeError."""
    assert type(error_from_problem({"code": "from_the_future", "detail": "x"})) is NowcastError
    error = error_from_problem({"code": ["busy"], "detail": None, "field": 3, "self": 1, "retry_after_s": 2, "missing": [10]})
    assert (type(error), error.field, error.extra) == (NowcastError, None, {"self": 1, "retry_after_s": 2, "missing": [10]})
