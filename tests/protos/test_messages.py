"""Errors survive the way over the wire; what is refused of them is in tests/hostile."""

import pytest

from protos.errors import ERRORS, NowcastError
from protos.messages import Problem


def test_every_error_survives_its_problem() -> None:
    """A worker could not tell a missing history from a full server."""
    for code, cls in ERRORS.items():
        error = cls("why", field="f", missing=[1, 2])
        problem = Problem(title=cls.title, status=cls.status, detail=error.detail, code=code, field=error.field, **error.extra)
        again = NowcastError.from_problem(problem.model_dump(exclude_none=True))
        assert (type(again), again.detail, again.field, again.extra) == (cls, "why", "f", {"missing": [1, 2]})


@pytest.mark.parametrize(
    ("member", "value"),
    [("retry_after_s", value) for value in ("5", None, [], -1, float("nan"), float("inf"))]
    + [("missing", value) for value in (3, "30", None, [[10]], {"10": 1}, [10.5])],
    ids=str,
)
def test_members_of_another_type_are_left_out(member: str, value: object) -> None:
    """A worker would compare a number with it, or look it up in a set, in the very place where it looks after failures."""
    assert NowcastError.from_problem({"code": "busy", member: value}).extra == {}


def test_any_problem_is_an_error() -> None:
    """A newer server's error would escape the worker's handling; or a wrong one's members be taken for arguments, a TypeError."""
    assert type(NowcastError.from_problem({"code": "from_the_future", "detail": "x"})) is NowcastError
    error = NowcastError.from_problem(
        {"code": ["busy"], "detail": None, "field": 3, "self": 1, "retry_after_s": 2, "missing": [10]}
    )
    assert (type(error), error.field, error.extra) == (NowcastError, None, {"self": 1, "retry_after_s": 2, "missing": [10]})
