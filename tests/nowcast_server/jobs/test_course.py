"""The course of a run: what a page shows of it, in memory that does not grow."""

import math
from itertools import pairwise

import pytest

from nowcast_server.jobs.course import POINTS, Course
from protos.messages import Progress


def told(count: int, *, first: int = 1) -> Course:
    """A run that has told its progress so many times, ten steps apart; its loss is its step."""
    course = Course(0.0)
    for index in range(first, first + count):
        course.tell(Progress(step=10 * index, loss=10.0 * index, gain=0.5))
    return course


@pytest.mark.parametrize("count", [POINTS, 3 * POINTS + 7, 20_000])
def test_long_run_is_thinned_over_its_whole_length(count: int) -> None:
    """A long run would fill the memory, or its beginning would be lost."""
    course = told(count)
    points = course.points()
    assert POINTS // 2 <= len(points) <= POINTS
    steps = [point.step for point in points]
    assert steps == sorted(set(steps))
    assert steps[-1] == 10 * count
    width = steps[1] - steps[0]
    # a point is the mean of the boundaries since the one before, so its loss lies half their width below its step
    assert points[0].loss == pytest.approx(steps[0] - (width - 10) / 2)
    assert {later - earlier for earlier, later in pairwise(steps[:-1])} == {width}


def test_points_as_they_come() -> None:
    """A long run's curve would stand still until a mean is complete; one that resumes from a checkpoint run backwards; a loop that
    tells no loss be drawn with one.
    """
    course = told(POINTS + 1)
    assert course.points()[-1].step == 10 * (POINTS + 1)
    course.tell(Progress(step=10 * (POINTS + 2)))
    assert course.points()[-1].step == 10 * (POINTS + 2)
    course = told(20)
    assert [(point.step, point.loss) for point in course.points()] == [(10 * index, 10.0 * index) for index in range(1, 21)]
    course.tell(Progress(step=100, coherence=-0.5))
    assert [point.step for point in course.points()] == [*range(10, 100, 10), 100]
    assert (course.points()[-1].loss, course.points()[-1].coherence) == (None, -0.5)


def test_losses_of_any_size_have_a_mean() -> None:
    """A run that diverges would have its uploads fail once its points are thinned, and the page of all jobs with it."""
    course = Course(0.0)
    for step in range(2 * POINTS):
        course.tell(Progress(step=step, loss=1.7e308))
    assert 1e300 <= course.curve(8)[0][1] < math.inf


def test_what_comes_without_a_loss_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """All 512 points would be read at each upload of a run that tells no losses, 0.3 ms on the event loop."""
    course = Course(0.0)
    course.tell(Progress(step=10))
    with monkeypatch.context() as patched:
        patched.setattr(Course, "points", lambda _: pytest.fail("all points were read"))
        for step in (20, 20, 30):
            course.tell(Progress(step=step))
    assert len(course.points()) == 3
